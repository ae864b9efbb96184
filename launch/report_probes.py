"""What the probes saw while the network was trained: curves, figures beside controls, and a sentence for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxscale.files import read_lines
from voxscale.metrics.trend import Trend, trend
from voxscale.report import charts, page
from voxscale.report.page import Section
from voxscale.report.table import decimal, interval, table

START = "probe/"

NAMES = {
    "knn_dice": "k-NN Dice",
    "linear_dice": "linear Dice",
    "landmark_mm": "landmark error (mm)",
    "compose_gap": "compose gap",
    "decompose_slots": "top-1 among slots",
    "decompose_scans": "top-1 among scans",
    "interpolation_gap": "interpolation gap",
    "effective_rank": "effective rank",
    "std": "deviation",
}

PROPERTIES = ("compose_gap", "decompose_slots", "decompose_scans", "interpolation_gap")

HEADS = ("_entropy", "_usage")

LEAST = 0.1
"""Share of the untrained network's rank or spread below which a network has collapsed."""

SOURCES = ("decoder", "encoder", "intensity", "embedding")

LEAD = (
    "While it was trained the network was looked at with its weights frozen: how well do its features name voxels of"
    " labelled scans that the probe has not seen, and do they still differ from one another? The first point is the"
    " untrained network of the same seed."
)

NOTE = (
    "Dice of voxels in crops around labelled structures, not of whole segmentations; mean over subjects,"
    " cross-validated by subject. Gain: paired difference to the untrained network. Intervals are 95 % over subjects,"
    " those of ranks and deviations over groups of crops. Shuffled: what is found where labels, or features, are"
    " permuted, so that there is nothing to find; a head is shown rows whose features come from anywhere. Intensity is"
    " the voxel's own grey value: features that do no better are worth no more than it. Ranks and deviations below a"
    " tenth of the untrained network's count as collapsed. An entropy near 1 is a head that cannot decide, a usage near"
    " 0 one that always says the same; a head whose entropy is that of shuffled features does not read them together."
)

PARTS = (
    "Landmarks are the centres of labelled structures, found in another person by the most alike feature; less is"
    " better. Gaps are cosines of what belongs together less those of what"
    " does not: a crop and the mean of its parts, the mean of two places and the place between them. Top-1: how"
    " often what a crop's feature map holds in the place of a part is nearest to the part seen by itself, among the"
    " parts of that crop, and among parts in the same place of other people's crops. An untrained network can be"
    " good at this, as neighbouring voxels look alike; what training adds is the gain."
)


def probes_section(run: Path) -> Section | None:
    """The probes of a pretraining; None if there were none.

    Args:
        run: Of pretraining.
    """
    file = run / "metrics.jsonl"
    rows = [row for row in (read_lines(file) if file.is_file() else []) if any(key.startswith(START) for key in row)]
    if not rows:
        return None
    names = figures(rows)
    said = {name: what_it_does(rows, name) for name in names}
    sentences = [f"{_first_up(title(name))}: {_words(name, found)}." for name, found in said.items() if found]
    html = page.bullets(sentences) + page.grid(map(page.chart, _charts(rows, names))) + _table(rows[-1], names)
    more = page.paragraph(PARTS, "note") if any(_kind(name) in (*PROPERTIES, "landmark_mm") for name in names) else ""
    return Section("Probes", html + page.paragraph(NOTE, "note") + more, LEAD)


def _words(name: str, found: Trend) -> str:
    """What it does; of an error, for which the rule is shown its negative, in words that fit both."""
    said = found.sentence()
    if _kind(name) == "landmark_mm":
        said = said.replace("rising", "getting better").replace("falling", "getting worse")
    return said


def _kind(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the probes' figures, those of labelled voxels first."""
    found = {key.removeprefix(START) for row in rows for key in row if key.startswith(START) and "." not in key}
    order = {name: place for place, name in enumerate(NAMES)}
    places = {source: place for place, source in enumerate(SOURCES)}

    def rank(name: str) -> tuple[int, int, str]:
        source, kind = name.rsplit("/", 1)
        return order.get(kind, len(order)), places.get(source, len(places)), name

    return sorted(found, key=rank)


def title(name: str) -> str:
    """Such as `decoder, linear Dice`."""
    source, kind = name.rsplit("/", 1)
    return f"{source.replace('_', ' ')}, {NAMES.get(kind, kind.replace('_', ' '))}"


def floor(row: Mapping[str, Any], name: str) -> float:
    """What a figure is where nothing is left: its shuffled control for a Dice or property, 1 for a rank, else 0."""
    if name.endswith("_dice"):
        return float(row.get(f"{START}{name}.shuffled_labels", 0.0))
    if _kind(name) in (*PROPERTIES, "landmark_mm"):
        return float(row.get(f"{START}{name}.shuffled_features", 0.0))
    return 1.0 if name.endswith("effective_rank") else 0.0


def what_it_does(rows: Sequence[Mapping[str, Any]], name: str) -> Trend | None:
    """By the rule of `voxscale.metrics.trend`; of what need not be high, and of grey values, nothing is said.

    An untrained network has a high rank and a wide spread without being worth anything. So of these the rule sees
    the trained network alone, and it counts as collapsed too when less than `LEAST` of the untrained
    network's height above the floor is left.
    """
    if name.endswith("_entropy") or name.startswith("intensity/"):
        return None
    points = [(row["step"], row[START + name]) for row in rows if row.get(START + name) is not None]
    low = floor(rows[-1], name)
    if name.endswith("/landmark_mm"):  # less is better
        points, low = [(step, -value) for step, value in points], -low
    spread = _kind(name) in ("effective_rank", "std")
    if spread and points[0][0] == 0 and len(points) > 1:
        enough = [step for step, value in points if value - low >= LEAST * (points[0][1] - low)]
        if not enough or enough[-1] < points[-1][0]:
            return Trend("collapsed", enough[-1] if enough else 0)
        points = points[1:]
    return trend([step for step, _ in points], [value for _, value in points], low)


def _charts(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    made: list[str] = []
    for kind in ("linear_dice", "knn_dice"):
        own = [name for name in names if name.endswith(f"/{kind}")]
        lines = {name.rsplit("/", 1)[0]: _points(rows, name) for name in own}
        if own:
            lines["shuffled labels"] = _points(rows, f"{own[0]}.shuffled_labels")
            alt = ", ".join(f"{source} {values[-1]:.2f}" for source, (_, values) in lines.items())
            look = {"name": f"probe-{kind}", "title": f"Frozen features, {NAMES[kind]}", "alt": f"At the end: {alt}"}
            made.append(charts.share_curves(lines, **look))
    own = {NAMES[_kind(name)]: _points(rows, name) for name in names if _kind(name) in PROPERTIES}
    more = {"properties": ("Parts and wholes", own)} if own else {}
    for kind in ("landmark_mm", "effective_rank", "std"):
        lines = {name.rsplit("/", 1)[0]: _points(rows, name) for name in names if _kind(name) == kind}
        if lines and kind == "landmark_mm":
            lines["places shuffled"] = _points(rows, f"{next(iter(lines))}/{kind}.shuffled_features")
        more |= {kind: (_first_up(NAMES[kind]), lines)} if lines else {}
    for kind, (text, lines) in more.items():
        alt = ", ".join(f"{source} {values[-1]:.3g}" for source, (_, values) in lines.items())
        look = {"name": f"probe-{kind}", "title": text, "alt": f"At the end: {alt}"}
        made.append(charts.loss_curves(lines, None, **look))
    return made + _heads_chart(rows, [name for name in names if name.endswith(HEADS)])


def _heads_chart(rows: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[str]:
    """Entropy and usage of all heads, each with its control where the run has one."""
    lines = {title(name): _points(rows, name) for name in heads}
    lines |= {f"{title(name)}, shuffled": _points(rows, f"{name}.shuffled_features") for name in heads}
    lines = {name: points for name, points in lines.items() if points[0]}
    if not lines:
        return []
    alt = "At the end: " + ", ".join(f"{name} {values[-1]:.2f}" for name, (_, values) in lines.items())
    return [charts.share_curves(lines, name="probe-heads", title="Entropies of heads", alt=alt)]


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> charts.Points:
    kept = [(row["step"], row[START + name]) for row in rows if row.get(START + name) is not None]
    return [float(step) for step, _ in kept], [float(value) for _, value in kept]


def _table(row: Mapping[str, Any], names: Sequence[str]) -> str:
    cells: list[list[str]] = []
    for name in names:
        one = {what: row.get(f"{START}{name}.{what}") for what in _WHAT}
        cells.append(
            [
                title(name),
                decimal(one["untrained"]),
                decimal(row.get(START + name)),
                interval((one["low"], one["high"])),
                decimal(one["gain"], sign=True),
                interval((one["gain_low"], one["gain_high"])),
                decimal(one["shuffled_labels"]),
                decimal(one["shuffled_features"]),
            ]
        )
    head = ["Probe", "Untrained", "At the end", "95 % interval", "Gain", "95 % interval", "Labels shuffled"]
    return table(f"Probes at step {row['step']}", [*head, "Features shuffled"], cells)


_WHAT = ("untrained", "low", "high", "gain", "gain_low", "gain_high", "shuffled_labels", "shuffled_features")
