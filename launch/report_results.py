"""What fine-tuning found: the sentence, the tables, the charts and the pictures of single cases."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.report import charts, page
from voxscale.report.page import Section
from voxscale.report.planes import CONVENTION, three_planes
from voxscale.report.table import MINUS, MISSING, decimal, interval, p_text, table

ARMS = ("scratch", "pretrained")
MARGIN_MM = 25.0
"""Surroundings of the label that a picture of a case keeps on every side."""

Results = Mapping[str, Any]
"""`results.json` of a fine-tuning run, see docs/design.md."""


def sentence(results: Results) -> str:
    """What pretraining did to the mean Dice, as the numbers have it: raised, lowered or not measurably changed.

    Plain ASCII, so that any terminal can show it.
    """
    summary = results["summary"]
    difference = summary["difference"]
    bounds = known_bounds(difference["ci95"])
    digits = _digits(results)
    before, after = (decimal(summary[arm]["dice_mean"], digits) for arm in ARMS)
    span = f"95 % interval {interval(bounds, digits)}" if bounds else "no interval: too few cases"
    change = decimal(difference["dice_mean"], digits, sign=True)
    cases = f"{difference['n_cases']} case{'' if difference['n_cases'] == 1 else 's'}"
    proof = f"(difference {change}, {span}, {p_text(difference['p_value'])}, {cases})".replace(MINUS, "-")
    if bounds and bounds[0] > 0:
        return f"Pretraining raised mean Dice from {before} to {after} {proof}."
    if bounds and bounds[1] < 0:
        return f"Pretraining lowered mean Dice from {before} to {after} {proof}."
    return f"Pretraining did not change mean Dice measurably: {before} from scratch, {after} pretrained {proof}."


def known_bounds(bounds: Any) -> tuple[float, float] | None:
    """Both ends of an interval, or None if one is not known (a single case has no spread)."""
    if bounds is None or any(b is None or not np.isfinite(b) for b in bounds):
        return None
    return float(bounds[0]), float(bounds[1])


def _digits(results: Results) -> int:
    """Two decimals, or three where two would hide a sign or not add up."""
    summary = results["summary"]
    before, after = (summary[arm]["dice_mean"] for arm in ARMS)
    change = summary["difference"]["dice_mean"]
    hidden = any(0 < abs(v) < 0.005 for v in (change, *(known_bounds(summary["difference"]["ci95"]) or ())))
    adds_up = abs(round(after, 2) - round(before, 2) - round(change, 2)) < 0.001
    return 2 if adds_up and not hidden else 3


def _entries(results: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Name, scratch, pretrained and difference of each label in the order of their numbers, then of the mean."""
    summary = results["summary"]
    parts = [summary[key] for key in (*ARMS, "difference")]
    for key in sorted(results["classes"], key=int):
        missing = {"dice_mean": None, "ci95": None}
        scratch, pretrained, difference = (part["per_label"].get(key, missing) for part in parts)
        yield results["classes"][key], scratch, pretrained, difference
    yield "mean", parts[0], parts[1], parts[2]


def result_table(results: Results) -> str:
    """The result as plain ASCII text for a terminal: one row per label and one for the mean."""
    head = ("Dice", *ARMS, "difference", "95 % interval")
    rows = [
        (name, *(decimal(part["dice_mean"]) for part in arms), decimal(d["dice_mean"], sign=True), interval(d["ci95"]))
        for name, *arms, d in _entries(results)
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, lines[1])
    return "\n".join(lines).replace(MINUS, "-").replace(MISSING, "-")


def headline_section(results: Results, volumes: Mapping[str, int], total_time: str) -> Section:
    """The sentence and the figures it rests on."""
    summary = results["summary"]
    difference = summary["difference"]
    digits = _digits(results)
    items = [
        (decimal(summary[arm]["dice_mean"], digits), f"Mean Dice, {arm}", interval(summary[arm]["ci95"], digits))
        for arm in ARMS
    ]
    items += [
        (decimal(difference["dice_mean"], digits, sign=True), "Difference", interval(difference["ci95"], digits)),
        (str(volumes["accepted"]), "Scans used", f"of {volumes['found']} found"),
        (total_time, "Time", "from raw scans to this page"),
    ]
    return Section("In short", page.tiles(items), sentence(results).replace("-", MINUS))


def result_section(results: Results) -> Section:
    """The table with intervals, the test, what to mind, and two charts."""
    entries = list(_entries(results))
    rows = [
        [
            name,
            *(cell for arm in arms for cell in (decimal(arm["dice_mean"]), interval(arm["ci95"]))),
            decimal(difference["dice_mean"], sign=True),
            interval(difference["ci95"]),
        ]
        for name, *arms, difference in entries
    ]
    head = ["Label", "Scratch", "95 % interval", "Pretrained", "95 % interval", "Difference", "95 % interval"]
    shown = [
        (name, d["dice_mean"], *bounds) for name, _, _, d in entries if (bounds := known_bounds(d["ci95"])) is not None
    ]
    pairs = [(scores["scratch"], scores["pretrained"]) for scores in case_scores(results).values()]
    better = sum(after > before for before, after in pairs)
    alt = f"{better} of {len(pairs)} cases got better"
    figures = [
        page.chart(
            charts.paired(pairs, name="paired", title="Every case", alt=alt),
            f"One line per case: {alt} (blue), the others did not (orange). Black: mean.",
        )
    ]
    if shown:
        alt = "Difference and 95 % interval per label and of the mean; figures in the table"
        svg = charts.forest(shown, name="forest", title="Difference per label", alt=alt)
        figures.insert(0, page.chart(svg, "Right of zero: in favour of pretraining. Bars are 95 % intervals."))
    html = table("Dice of held-out cases", head, rows, strong=[len(rows) - 1]) + page.paragraph(_test_text(results))
    html += "".join(page.paragraph(text, "note") for text in _caveats(results)) + page.grid(figures)
    return Section("Result", html, "Same network, same cases, same steps; only the weights at the start differ.")


def _test_text(results: Results) -> str:
    difference = results["summary"]["difference"]
    seeds = results["seeds"]
    return (
        f"Paired sign-flip test over cases: {p_text(difference['p_value'])}; least p attainable with so many cases:"
        f" {difference['least_p']:.2g}. {difference['n_cases']} cases, {results['folds']} folds,"
        f" {len(seeds)} seed{'' if len(seeds) == 1 else 's'} ({', '.join(map(str, seeds))}),"
        f" {results['steps']} steps per fold and arm."
    )


def _caveats(results: Results) -> list[str]:
    """What a careful reader would hold against the figures."""
    difference = results["summary"]["difference"]
    bounds = known_bounds(difference["ci95"])
    texts = [
        "Cases of one fold share a model, so they are not fully independent: the interval covers the spread between"
        " cases, not all of the spread between training runs, and may be too narrow."
    ]
    if difference["least_p"] is not None and difference["least_p"] > 0.05:
        texts.append("With so few cases the test could not have fallen below p = 0.05, whatever the difference.")
    apart = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
    if difference["p_value"] is not None and apart != (difference["p_value"] < 0.05):
        texts.append("Interval and test do not agree here; take the result as open.")
    return texts


def case_scores(results: Results) -> dict[str, dict[str, float]]:
    """Mean Dice of each case and arm over labels, then seeds; only cases that both arms have."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in results["cases"]:
        values = [v for v in row["dice"].values() if v is not None]
        if values:
            found.setdefault(row["case"], {}).setdefault(row["arm"], []).append(float(np.mean(values)))
    return {
        case: {arm: float(np.mean(arms[arm])) for arm in ARMS}
        for case, arms in found.items()
        if set(ARMS) <= arms.keys()
    }


def overlay_section(results: Results, previews: Path) -> Section:
    """Truth and both predictions of the best, the median and the worst case that has a preview.

    Args:
        results: As read from `results.json`.
        previews: Folder of `<case>.npz`.
    """
    scores = {case: s for case, s in case_scores(results).items() if (previews / f"{case}.npz").is_file()}
    if not scores:
        return Section("Predictions", page.paragraph("No previews were saved."))
    ranked = sorted(scores, key=lambda case: scores[case]["pretrained"] - scores[case]["scratch"], reverse=True)
    places = {0: "Best difference", len(ranked) - 1: "Worst difference"}
    places.setdefault(len(ranked) // 2, "Median difference")
    key = page.class_legend({int(value): name for value, name in results["classes"].items()})
    parts = [_case(places[at], ranked[at], scores[ranked[at]], previews) for at in sorted(places)]
    note = page.paragraph(f"{CONVENTION} Pictures are cut to the label and {MARGIN_MM:.0f} mm around it.", "note")
    lead = "Outline: the reference label. Filled: what the network predicted for a case it was not trained on."
    return Section("Predictions", key + "\n".join(parts) + note, lead)


def _case(place: str, case: str, scores: Mapping[str, float], previews: Path) -> str:
    with np.load(previews / f"{case}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in ("image", "truth", *ARMS)}
        z, y, x = (float(s) for s in file["spacing"])
    box = _surroundings(arrays["truth"], (z, y, x))
    image = arrays["image"][box].astype(np.float32)
    truth, *predictions = (arrays[key][box].astype(np.uint8) for key in ("truth", *ARMS))
    pictures = [page.picture(three_planes(image, (z, y, x), truth), f"Case {case}, reference label", "Reference label")]
    for arm, prediction in zip(ARMS, predictions, strict=True):
        text = f"{arm.capitalize()}, Dice {decimal(scores[arm])}"
        png = three_planes(image, (z, y, x), truth, prediction)
        pictures.append(page.picture(png, f"Case {case}, {text}", text))
    change = decimal(scores["pretrained"] - scores["scratch"], sign=True)
    return page.heading(f"{place}: {change} (case {case})") + page.grid(pictures, "three")


def _surroundings(truth: NDArray[Any], spacing: tuple[float, float, float]) -> tuple[slice, ...]:
    """Box of the label and `MARGIN_MM` around it; the whole grid where nothing is labelled."""
    points = np.argwhere(truth > 0)
    if not len(points):
        return tuple(slice(None) for _ in truth.shape)
    margin = np.ceil(MARGIN_MM / np.asarray(spacing)).astype(int)
    start, stop = np.maximum(points.min(axis=0) - margin, 0), points.max(axis=0) + 1 + margin
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def transfer_section(results: Results) -> Section:
    """Which tensors came from pretraining; names folded away."""
    words = {
        "loaded": ("Loaded", "taken from the pretrained backbone"),
        "reinitialised": ("Started anew", "no counterpart of the same shape, such as the last layer"),
        "unused": ("Not used", "in the checkpoint, but not in this network"),
    }
    transfer = {key: [str(name) for name in results["transfer"][key]] for key in words}
    tiles = page.tiles((str(len(transfer[key])), name, why) for key, (name, why) in words.items())
    lists = "".join(
        page.folded(f"{words[key][0]}: names", f"<pre><code>{escape(chr(10).join(names))}</code></pre>")
        for key, names in transfer.items()
        if names
    )
    return Section("Transfer", tiles + lists, "What the pretrained arm took over, tensor by tensor.")
