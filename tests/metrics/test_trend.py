"""The rule is tried on curves drawn by hand, plain and with noise."""

import numpy as np
import pytest

from voxscale.metrics.trend import trend

STEPS = list(range(0, 1100, 100))


@pytest.mark.parametrize("noise", [0.0, 0.005])
@pytest.mark.parametrize(
    ("values", "kind", "since"),
    [
        ([0.1 + 0.05 * n for n in range(11)], "rising", 0),
        ([0.1, 0.3, 0.45, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], "flat", 300),
        ([0.5] * 11, "flat", 0),
        ([0.1, 0.3, 0.5, 0.6, 0.6, 0.6, 0.5, 0.3, 0.15, 0.1, 0.1], "collapsed", 600),
        ([0.1, 0.3, 0.6, 0.6, 0.6, 0.58, 0.55, 0.52, 0.5, 0.48, 0.45], "falling", 400),
        ([0.1, 0.3, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.1], "falling", 900),  # one point alone may be chance
        ([8.0, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1], "collapsed", 0),
    ],
)
def test_hand_made_curves(values, kind, since, noise):
    drawn = np.asarray(values) * (1 + noise * np.random.default_rng(1).normal(size=11))
    found = trend(STEPS, drawn.tolist())
    assert found.kind == kind
    assert abs(found.since - since) <= (0 if noise == 0 else 200)


def test_what_is_left_above_the_floor_decides_about_a_collapse():
    values = [0.4, 0.6, 0.7, 0.7, 0.7, 0.6, 0.5, 0.45, 0.42, 0.42, 0.42]
    assert trend(STEPS, values).kind == "falling"
    assert trend(STEPS, values, floor=0.4).kind == "collapsed"


def test_the_sentence_names_the_step():
    assert trend(STEPS, [0.1, 0.4] + [0.5] * 9).sentence() == "flat since step 200"
    assert trend([0, 5], [0.1, 0.2]).sentence() == "too few points to tell (3 are needed)"
    assert trend(STEPS, [0.1 * n for n in range(11)]).sentence() == "rising"


def test_noise_alone_is_neither_a_rise_nor_a_fall():
    draw = np.random.default_rng(0)
    kinds = [trend(STEPS, (0.5 + 0.02 * draw.normal(size=11)).tolist()).kind for _ in range(200)]
    assert kinds.count("flat") >= 190
    assert "collapsed" not in kinds
