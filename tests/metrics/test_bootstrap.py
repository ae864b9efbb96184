import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from voxscale.errors import DataError
from voxscale.metrics.bootstrap import mean_ci


def test_equals_bca_written_out() -> None:
    """BCa after Efron and Tibshirani 1993, equations 14.9 to 14.15, over all resamples instead of random ones."""
    values = np.array([0.1, 0.5, 0.6, 0.9, 0.95])
    means = np.sort([np.mean(pick) for pick in itertools.product(values, repeat=5)])
    bias = stats.norm.ppf(((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2)
    jack = np.array([np.delete(values, i).mean() for i in range(5)])
    away = jack.mean() - jack
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = [stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in stats.norm.ppf([0.025, 0.975])]
    want = np.quantile(means, ends)
    mean, low, high = mean_ci(values.tolist(), seed=0, resamples=20000)
    assert mean == pytest.approx(0.61)
    assert (low, high) == (pytest.approx(want[0], abs=0.012), pytest.approx(want[1], abs=0.012))


def test_large_sample_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    mean, low, high = mean_ci(values.tolist(), seed=1, level=0.9)
    half = 1.645 * values.std(ddof=1) / 20
    assert (low, high) == (pytest.approx(mean - half, abs=1e-3), pytest.approx(mean + half, abs=1e-3))


def test_skewed_values_shift_the_interval_unlike_the_percentile_one() -> None:
    values = np.random.default_rng(2).exponential(1, 25)
    mean, low, high = mean_ci(values.tolist(), seed=3)
    assert high - mean > 1.1 * (mean - low)


def test_same_seed_same_interval() -> None:
    values = [0.2, 0.4, 0.9, 0.6, 0.55, 0.31]
    assert mean_ci(values, seed=4) == mean_ci(values, seed=4)
    assert mean_ci(values, seed=4, resamples=200) != mean_ci(values, seed=5, resamples=200)


@given(value=st.floats(-1, 1), n=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_equal_values_fall_back_to_an_interval_of_no_width(value: float, n: int) -> None:
    assert mean_ci([value] * n, seed=0, resamples=100) == pytest.approx((value, value, value))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(0, 100))
@example([0.4876955897416396] * 3, 0)
@settings(max_examples=50, deadline=None)
def test_interval_lies_within_the_values(values: list[float], seed: int) -> None:
    mean, low, high = mean_ci(values, seed, resamples=200)
    assert low is not None
    assert high is not None
    assert min(values) <= low <= high <= max(values)
    assert mean == pytest.approx(sum(values) / len(values))


def test_one_case_has_no_interval() -> None:
    assert mean_ci([0.8], seed=0) == (0.8, None, None)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [float("inf"), 1.0], [[0.5, 0.6]]])
def test_bad_values_are_refused(values: list) -> None:
    with pytest.raises(DataError, match=r"^values must"):
        mean_ci(values, seed=0)
