"""What fine-tuning found, on the page: the headline, the table, the charts and the pictures of single cases."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.report_text import (
    ARMS,
    LEVEL,
    Results,
    counts,
    digits,
    entries,
    fine_print,
    known_bounds,
    rejects,
    sentence,
    too_few,
)
from voxscale.report import charts, page
from voxscale.report.page import Section
from voxscale.report.planes import CONVENTION, three_planes
from voxscale.report.table import MINUS, decimal, interval, p_text, table

MARGIN_MM = 25.0
"""Surroundings of the label that a picture of a case keeps on every side."""


def headline_section(results: Results, volumes: Mapping[str, int], total_time: str) -> Section:
    """The sentence and the figures it rests on."""
    summary = results["summary"]
    difference = summary["difference"]
    places = digits(results)
    items = [
        (decimal(summary[arm]["dice_mean"], places), f"Mean Dice, {arm}", interval(summary[arm]["ci95"], places))
        for arm in ARMS
    ]
    proof = f"{interval(difference['ci95'], places)}, {p_text(difference['p_value'])}"
    items += [
        (decimal(difference["dice_mean"], places, sign=True), "Difference", proof),
        (str(volumes["accepted"]), "Scans accepted", f"of {volumes['found']} found"),
        (total_time, "Time", "from raw scans to this page"),
    ]
    return Section("In short", page.tiles(items), sentence(results).replace("-", MINUS))


def result_section(results: Results, left_out: str = "") -> Section:
    """The table with intervals, the test, what to mind, and two charts.

    Args:
        results: As read from `results.json`.
        left_out: Sentence on scans of the task that pretraining did not see, if there were any.
    """
    rows = [
        [
            name,
            *(cell for arm in arms for cell in (decimal(arm["dice_mean"]), interval(arm["ci95"]))),
            decimal(difference["dice_mean"], sign=True),
            interval(difference["ci95"]),
        ]
        for name, *arms, difference in entries(results)
    ]
    head = ["Label", "Scratch", "95 % interval", "Pretrained", "95 % interval", "Difference", "95 % interval"]
    html = table("Dice of held-out cases", head, rows, strong=[len(rows) - 1]) + page.paragraph(fine_print(results))
    html += "".join(page.paragraph(text, "note") for text in _caveats(results, left_out))
    html += page.grid(_result_charts(results))
    return Section("Result", html, "Same network, same cases, same steps; only the weights at the start differ.")


def _result_charts(results: Results) -> list[str]:
    """Differences with their intervals, where there are any, and both results of every case."""
    shown = [
        (name, d["dice_mean"], *bounds)
        for name, _, _, d in entries(results)
        if (bounds := known_bounds(d["ci95"])) is not None
    ]
    pairs = [(scores["scratch"], scores["pretrained"]) for scores in case_scores(results).values()]
    better = sum(after > before for before, after in pairs)
    alt = f"{better} of {len(pairs)} cases got better"
    cases, subjects = counts(results)
    weighs = "" if subjects == cases else ", which weighs a subject by its number of cases"
    figures = [
        page.chart(
            charts.paired(pairs, name="paired", title="Every case", alt=alt),
            f"One line per case: {alt} (blue), the others did not (orange). Black: mean over cases{weighs}.",
        )
    ]
    if shown:
        alt = "Difference and 95 % interval per label and of the mean; figures in the table"
        svg = charts.forest(shown, name="forest", title="Difference per label", alt=alt)
        figures.insert(0, page.chart(svg, "Right of zero: in favour of pretraining. Bars are 95 % intervals."))
    return figures


def _caveats(results: Results, left_out: str) -> list[str]:
    """What a careful reader would hold against the figures."""
    bounds = known_bounds(results["summary"]["difference"]["ci95"])
    texts = [
        "Cases of one fold share a model, so they are not fully independent: the interval covers the spread between"
        " cases, not all of the spread between training runs, and may be too narrow."
    ]
    if left_out:
        texts.append(left_out)
    if too_few(results):
        texts.append(
            f"So few cases differ that the test could not have fallen below p = {LEVEL}, whatever the difference."
        )
    apart = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
    if apart != rejects(results):
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
    if "table" in results["transfer"]:
        lists += page.folded("Every weight's fate", f"<pre><code>{escape(results['transfer']['table'])}</code></pre>")
    return Section("Transfer", tiles + lists, "What the pretrained arm took over, tensor by tensor.")
