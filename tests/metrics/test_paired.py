import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.errors import DataError
from voxscale.metrics.paired import PairedTest, paired_test


def enumerated(differences: list[int]) -> float:
    """Two-sided p over all sign patterns; sums of integers are exact."""
    observed = abs(sum(differences))
    sums = [abs(sum(np.multiply(signs, differences))) for signs in itertools.product((1, -1), repeat=len(differences))]
    return sum(s >= observed for s in sums) / len(sums)


@pytest.mark.parametrize(
    ("differences", "p_value", "least_p"),
    [
        ([1, 2, 3], 2 / 8, 2 / 8),
        ([-1, -2, -3], 2 / 8, 2 / 8),
        ([-1, 2, 3], 4 / 8, 2 / 8),  # as far from 0 as 4: 4, 6, -4, -6
        ([0, 2, 3], 2 / 4, 2 / 4),  # the zero tells no patterns apart
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 2 / 64, 2 / 64),
        ([0.5], 1.0, 1.0),
        ([0, 0, 0], 1.0, 1.0),
        ([1, -1], 1.0, 0.5),
    ],
)
def test_hand_computed(differences: list[float], p_value: float, least_p: float) -> None:
    want = PairedTest(p_value=pytest.approx(p_value), least_p=pytest.approx(least_p), n=len(differences))
    assert paired_test(differences, seed=0) == want


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=7))
@settings(deadline=None)
def test_exact_test_counts_sign_patterns(differences: list[int]) -> None:
    found = paired_test(differences, seed=0)
    assert found.p_value == pytest.approx(min(enumerated(differences), 1))
    assert found.p_value >= found.least_p
    assert found == paired_test([-d for d in differences], seed=1)


def test_thirteen_pairs_are_exact_and_fourteen_are_drawn() -> None:
    assert paired_test([1.0] * 13, seed=0) == PairedTest(p_value=2 / 2**13, least_p=2 / 2**13, n=13)
    found = paired_test(list(np.linspace(1, 2, 30)), seed=0)
    assert found == PairedTest(p_value=2 / 10000, least_p=2 / 10000, n=30)


def test_drawn_patterns_come_near_the_exact_value() -> None:
    differences = [3, -1, 2, 2, -1, 1, 0, 4, -2, 1, 2, -1, 1, 1, 2]
    found = paired_test(differences, seed=0)
    assert found.p_value == pytest.approx(enumerated(differences), rel=0.15)
    assert found == paired_test(differences, seed=0)
    assert found.p_value != paired_test(differences, seed=1).p_value


def test_least_p_with_many_zeros_is_that_of_the_other_pairs() -> None:
    assert paired_test([0.0] * 18 + [1.0, 2.0], seed=0).least_p == 0.5


@pytest.mark.parametrize("differences", [[], [0.5, float("nan")], [[0.5, 0.6]]])
def test_bad_differences_are_refused(differences: list) -> None:
    with pytest.raises(DataError, match=r"^differences must"):
        paired_test(differences, seed=0)
