import numpy as np
import pytest
from scipy import stats

from voxscale.errors import DataError
from voxscale.metrics.jackknife import jackknife_ci


def test_of_a_mean_it_is_students_interval():
    values = np.random.default_rng(0).normal(size=12).tolist()
    found = jackknife_ci(lambda groups: float(np.mean(groups)), values)
    low, high = stats.t.interval(0.95, 11, np.mean(values), stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high))


def test_one_group_is_refused():
    with pytest.raises(DataError, match="groups must be at least 2, not 1"):
        jackknife_ci(lambda groups: 0.0, [1])
