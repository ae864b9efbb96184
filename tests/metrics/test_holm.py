import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxscale.metrics.holm import holm


def test_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.01, 0.3))
def test_equals_the_closed_test_with_bonferroni(p_values, level):
    """Holm's is the closure of Bonferroni's: a hypothesis falls if every set that it is in falls."""
    adjusted = holm(p_values)
    for one in range(len(p_values)):
        others = [i for i in range(len(p_values)) if i != one]
        sets = [(one, *more) for n in range(len(p_values)) for more in itertools.combinations(others, n)]
        closed = max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets)
        assert adjusted[one] == pytest.approx(closed)
