import itertools

import pytest

from voxscale.engine.config import OptimConfig
from voxscale.engine.schedule import learning_rate


def rates(**values):
    config = OptimConfig(lr=1.0, **values)
    return [learning_rate(config, step, 100) for step in range(100)]


def test_cosine_by_hand():
    found = rates(schedule="cosine", warmup=0.0)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert found[99] == pytest.approx(0.000247, abs=1e-6)


def test_poly_by_hand():
    found = rates(schedule="poly", warmup=0.0)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5**0.9)


def test_halving_by_hand():
    found = rates(schedule="halving", warmup=0.0)
    assert found == [rate for rate in (1.0, 0.5, 0.25, 0.125, 0.0625) for _ in range(20)]


def test_warmup_rises_linearly_to_the_peak():
    found = rates(warmup=0.1)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(found) == found[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(found[10:]))
