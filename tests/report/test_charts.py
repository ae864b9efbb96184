import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from voxscale.report import charts

SVG = "{http://www.w3.org/2000/svg}"
STEPS = [float(s) for s in range(60)]
LOSSES = [2.0 / (1 + s) for s in STEPS]
ROWS = [("a", 0.10, 0.05, 0.15), ("b", -0.20, -0.30, -0.10), ("mean", 0.04, -0.02, 0.1)]

MAKERS: dict[str, Callable[[str], str]] = {
    "loss": lambda name: charts.loss_curves(
        {"loss": (STEPS, LOSSES), "ce": (STEPS, STEPS)}, (STEPS, LOSSES), name=name, title="T<", alt='A "b"'
    ),
    "share": lambda name: charts.share_curves(
        {"pretext accuracy": (STEPS, LOSSES)}, name=name, title="T<", alt='A "b"'
    ),
    "arms": lambda name: charts.arm_curves(
        {"scratch": [(STEPS, LOSSES)], "pretrained": [(STEPS, LOSSES), (STEPS[:9], LOSSES[:9])]},
        name=name,
        title="T<",
        alt='A "b"',
    ),
    "paired": lambda name: charts.paired([(0.5, 0.6), (0.7, 0.6)], name=name, title="T<", alt='A "b"'),
    "forest": lambda name: charts.forest(ROWS, name=name, title="T<", alt='A "b"'),
    "strips": lambda name: charts.strips({"z": [1.0, 5.0], "y": []}, name=name, title="T<", unit="mm", alt='A "b"'),
}


def markers(svg: str) -> list[tuple[float, float]]:
    """Places of the markers in pixels, in the order they were drawn."""
    tree = ElementTree.fromstring(svg)
    uses = [use for use in tree.iter(f"{SVG}use") if "x" in use.attrib]
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in uses]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_chart_can_stand_in_a_page_beside_others(make: Callable[[str], str]) -> None:
    svg = make("one")
    tree = ElementTree.fromstring(svg)
    assert tree.attrib["aria-label"] == 'A "b"'
    assert tree.attrib["role"] == "img"
    assert "T<" in "".join(tree.itertext())
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(re.findall(r'\bid="([^"]*)"', make("two")))
    used = re.findall(r'(?:href="|url\()#([^")]*)', svg)
    assert used
    assert set(used) <= set(ids)
    for unwanted in ("<style", "<metadata", "<script", "DejaVu", "<!DOCTYPE"):
        assert unwanted not in svg


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_chart_is_the_same_every_time(make: Callable[[str], str]) -> None:
    assert make("one") == make("one")


def test_forest_draws_values_to_scale_and_from_top_to_bottom() -> None:
    (ax, ay), (bx, by), (mx, my) = markers(charts.forest(ROWS, name="f", title="", alt=""))
    assert (ax - bx) / (mx - bx) == pytest.approx(0.30 / 0.24, rel=1e-4)
    assert ay < by < my
    assert by - ay == pytest.approx(my - by, rel=1e-4)


def test_shares_are_drawn_on_the_same_axis_whatever_they_are() -> None:
    def ticks(values: list[float]) -> list[str]:
        svg = charts.share_curves({"a": ([0.0, 1.0], values)}, name="s", title="", alt="")
        return re.findall(r">([\d.]+)</text>", svg)

    assert ticks([0.5, 0.52]) == ticks([0.0, 1.0])
    assert {"0.0", "1.0"} <= set(ticks([0.5, 0.52]))


def test_paired_joins_both_results_of_each_case() -> None:
    (x0, y0), (x1, y1), (u0, v0), (u1, v1), (m0, w0), (m1, w1) = markers(
        charts.paired([(0.5, 0.6), (0.7, 0.6)], name="p", title="", alt="")
    )
    assert x0 == u0 == m0 < x1 == u1 == m1
    assert y1 == pytest.approx(v1)
    assert y0 - y1 == pytest.approx(v1 - v0)  # pixels count downwards: the first rises as much as the second falls
    assert w0 == pytest.approx((y0 + v0) / 2, abs=1e-3)
    assert w1 == pytest.approx(y1, abs=1e-3)


def test_paired_colours_those_that_got_worse() -> None:
    svg = charts.paired([(0.5, 0.6), (0.6, 0.7)], name="p", title="", alt="")
    assert charts.PRETRAINED in svg
    assert charts.WORSE not in svg
    assert charts.WORSE in charts.paired([(0.5, 0.6), (0.7, 0.6)], name="p", title="", alt="")


def test_labels_are_text_whatever_they_hold() -> None:
    svg = charts.forest([("$\\frac{", 0.1, 0.0, 0.2), ("x" * 40, 0.1, 0.0, 0.2)], name="f", title="", alt="")
    assert "$\\frac{" in "".join(ElementTree.fromstring(svg).itertext())
    assert "x" * 21 + "…" in svg


@pytest.mark.parametrize("count", [1, 39, 40, 200])
def test_moving_mean_is_the_mean_of_a_window_that_shrinks_at_the_ends(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    half = count // 40
    for at, got in enumerate(charts.moving_mean(values)):
        reach = min(half, at, count - 1 - at)
        assert got == pytest.approx(values[at - reach : at + reach + 1].mean())


def test_moving_mean_of_nothing_is_nothing() -> None:
    assert charts.moving_mean([]).shape == (0,)


def test_no_figure_is_left_in_memory_of_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    MAKERS["forest"]("x")
    assert pyplot.get_fignums() == before
