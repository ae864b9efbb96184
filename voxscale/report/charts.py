"""Charts as inline SVG: one restrained style, readable at phone width, text in the font of the page."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

INK, FAINT, RULE = "#24303c", "#5f6b78", "#e3e7eb"
SCRATCH, PRETRAINED, WORSE = "#7d7467", "#0b66a8", "#c2540a"
"""Colours of the two arms and of a case that got worse; told apart with any kind of colour vision."""

SEQUENCE = (PRETRAINED, "#c2540a", "#00795a", "#8d4a86", FAINT)
"""Colours of lines that have no meaning of their own, in turn."""

WIDTH = 4.7
"""Width of a chart in inches: 451 pixels, so that letters stay readable when it shrinks to a phone."""

STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,  # a class may be called $x
    "svg.fonttype": "none",
    "axes.edgecolor": "#b8c0c8",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.solid_capstyle": "round",
}

Points = tuple[Sequence[float], Sequence[float]]
"""Positions and values of one line, equally many."""


def loss_curves(lines: Mapping[str, Points], rate: Points | None, *, name: str, title: str, alt: str) -> str:
    """Losses over steps, with the learning rate small below.

    Each logged value is drawn thin, its moving mean thick (see `moving_mean`).

    Args:
        lines: Steps and values of each loss or term; the first is the total.
        rate: Steps and learning rates, if known.
        name: Unique in the page; prefix of every id in the SVG.
        title: Short title.
        alt: Description for those who cannot see the chart.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        if rate is None:
            axes = figure.add_subplot()
        else:
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
            below.plot(*rate, color=FAINT, linewidth=1.2)
            below.set_ylabel("rate", fontsize=8.5)
            below.set_yticks([0, max(rate[1], default=0.0)])
            below.set_yticklabels(["0", f"{max(rate[1], default=0.0):.2g}"], fontsize=8)
            below.set_xlabel("step")
        for number, (key, points) in enumerate(lines.items()):
            _line(axes, key, points, SEQUENCE[number % len(SEQUENCE)], "-")
        axes.set_title(title)
        axes.set_xlabel("step" if rate is None else "")
        axes.legend()
        return _svg(figure, name, alt)


def share_curves(lines: Mapping[str, Points], *, name: str, title: str, alt: str) -> str:
    """Shares over steps on an axis that always runs from 0 to 1, thin and thick as in `loss_curves`.

    Args:
        lines: Steps and values of each share.
        name: As in `loss_curves`.
        title: Short title.
        alt: As in `loss_curves`.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, (key, points) in enumerate(lines.items()):
            _line(axes, key, points, SEQUENCE[number % len(SEQUENCE)], "-")
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.legend()
        return _svg(figure, name, alt)


def arm_curves(arms: Mapping[str, Sequence[Points]], *, name: str, title: str, alt: str) -> str:
    """One value over steps for both arms: every run thin, the mean over runs thick.

    Args:
        arms: Runs of `scratch` (dashed) and `pretrained`.
        name: As in `loss_curves`.
        title: Short title.
        alt: As in `loss_curves`.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for arm, runs in arms.items():
            colour, dash = (SCRATCH, (0, (4, 2))) if arm == "scratch" else (PRETRAINED, "-")
            for steps, values in runs:
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            if runs:
                shared = min(len(steps) for steps, _ in runs)
                mean = np.mean([values[:shared] for _, values in runs], axis=0)
                axes.plot(runs[0][0][:shared], moving_mean(mean), color=colour, linestyle=dash, linewidth=2, label=arm)
        axes.set_title(title)
        axes.set_xlabel("step")
        if any(arms.values()):
            axes.legend()
        return _svg(figure, name, alt)


def paired(cases: Sequence[tuple[float, float]], *, name: str, title: str, alt: str) -> str:
    """Both results of every case, joined by a line, and their means.

    Args:
        cases: (scratch, pretrained) Dice of each case.
        name: As in `loss_curves`.
        title: Short title.
        alt: As in `loss_curves`.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for before, after in cases:
            colour = PRETRAINED if after >= before else WORSE
            axes.plot((0, 1), (before, after), color=colour, alpha=0.55, linewidth=1.2, marker="o", markersize=4)
        if cases:
            means = np.mean(cases, axis=0)
            axes.plot((0, 1), means, color=INK, linewidth=2.6, marker="D", markersize=6)
            for at, mean, side in ((0, means[0], "right"), (1, means[1], "left")):
                pad = -0.07 if side == "right" else 0.07
                axes.text(at + pad, mean, f"{mean:.3f}", ha=side, va="center", color=INK, fontweight="bold")
        axes.set_xlim(-0.4, 1.4)
        axes.set_xticks((0, 1), ("scratch", "pretrained"))
        axes.set_ylabel("mean Dice of the case")
        axes.set_title(title)
        return _svg(figure, name, alt)


def forest(
    rows: Sequence[tuple[str, float, float, float]], *, name: str, title: str, alt: str, mean: bool = True
) -> str:
    """Differences with their intervals against a line at zero.

    Args:
        rows: (label, difference, low, high), top to bottom.
        name: As in `loss_curves`.
        title: Short title.
        alt: As in `loss_curves`.
        mean: Whether the last is the mean of the others, drawn as a diamond.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, max(3.6, 0.9 + 0.32 * len(rows))), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=FAINT, linewidth=1)
        for place, (_, middle, low, high) in enumerate(rows):
            last = mean and place == len(rows) - 1
            colour = INK if last else PRETRAINED
            axes.plot((low, high), (place, place), color=colour, linewidth=2.6 if last else 1.8)
            axes.plot(middle, place, color=colour, marker="D" if last else "o", markersize=7)
        axes.set_yticks(range(len(rows)), [_shorten(label) for label, *_ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("difference in Dice (pretrained \N{MINUS SIGN} scratch)")
        axes.set_title(title)
        return _svg(figure, name, alt)


def strips(groups: Mapping[str, Sequence[float]], *, name: str, title: str, unit: str, alt: str) -> str:
    """Every value of each group as a dot, with a bar at the median.

    Args:
        groups: Values under each name, top to bottom.
        name: As in `loss_curves`.
        title: Short title.
        unit: Under the axis.
        alt: As in `loss_curves`.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, 0.95 + 0.42 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for place, values in enumerate(groups.values()):
            axes.plot(values, [place] * len(values), "o", color=PRETRAINED, alpha=0.4, markersize=6, markeredgewidth=0)
            if len(values):
                axes.plot([float(np.median(values))] * 2, (place - 0.28, place + 0.28), color=INK, linewidth=2)
        axes.set_yticks(range(len(groups)), list(groups), color=INK)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(unit)
        axes.set_title(title)
        return _svg(figure, name, alt)


def histogram(
    edges: Sequence[float],
    low: Sequence[float],
    middle: Sequence[float],
    high: Sequence[float],
    *,
    name: str,
    title: str,
    unit: str,
    alt: str,
) -> str:
    """The middle histogram of many scans as a step line, and a band that most of them lie in.

    Args:
        edges: n + 1 ends of the bins.
        low: n lower ends of the band, in percent of the voxels.
        middle: n values of the line.
        high: n upper ends of the band.
        name: As in `loss_curves`.
        title: Short title.
        unit: Under the axis.
        alt: As in `loss_curves`.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        at = np.repeat(np.asarray(edges), 2)[1:-1]
        axes.fill_between(at, np.repeat(low, 2), np.repeat(high, 2), color=PRETRAINED, alpha=0.2, linewidth=0)
        axes.plot(at, np.repeat(middle, 2), color=PRETRAINED, linewidth=1.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(unit)
        axes.set_ylabel("% of voxels")
        axes.set_title(title)
        return _svg(figure, name, alt)


def moving_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred mean over a twentieth of the values, over fewer at both ends, so that the ends stay where they are."""
    array = np.asarray(values, dtype=np.float64)
    half = len(array) // 40
    sums = np.concatenate([[0.0], np.cumsum(array)])
    reach = np.minimum(half, np.minimum(np.arange(len(array)), np.arange(len(array))[::-1]))
    at = np.arange(len(array))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def _line(axes: Axes, key: str, points: Points, colour: str, dash: str) -> None:
    steps, values = points
    if len(values) >= 40:  # below that the moving mean is the line itself
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, moving_mean(values), color=colour, linestyle=dash, linewidth=1.8, label=key)


def _shorten(text: str) -> str:
    return text if len(text) <= 22 else f"{text[:21]}…"


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Write a figure as an SVG that can stand in a page beside others.

    Matplotlib gives the same ids to every figure and names a font by its file,
    so ids get the chart's name in front and text takes the font of the page.
    """
    out = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    head = f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(alt)}"'
    return re.sub(r'<svg\b([^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', rf"{head}\1\2", svg, count=1)
