import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_prep.levels import levels_of
from voxscale.contract import PERCENTILES

voxels_of = st.sampled_from(["int8", "uint8", "int16", "uint16"]).flatmap(lambda kind: arrays(kind, st.integers(1, 60)))
SCALINGS = st.sampled_from([(1.0, 0.0), (-0.37, 2.2), (0.001, -1024.0), (3.14159e-7, 5.0)])


@given(voxels_of, SCALINGS)
def test_counts_tell_what_numpy_tells_of_the_voxels(voxels, scaling):
    slope, intercept = scaling
    values = (voxels.astype(np.float64) * slope + intercept).astype(np.float32)
    levels = levels_of(voxels, slope, intercept)
    assert levels is not None
    assert levels.percentiles(PERCENTILES).tolist() == np.percentile(values, PERCENTILES).tolist()
    assert (levels.low, levels.high, levels.size) == (values.min(), values.max(), values.size)
    assert levels.share(float(values[0])) == (values == values[0]).mean()
    middle = float(np.median(values))
    assert levels.above(middle).counts.sum() == np.count_nonzero(values > middle)
    mean, std = levels.mean_and_std()
    assert mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12, abs=1e-12)
    assert std == pytest.approx(values.std(dtype=np.float64), rel=1e-9, abs=1e-9)


def test_other_numbers_are_not_counted():
    assert levels_of(np.zeros(3, np.float32), 1.0, 0.0) is None
    assert levels_of(np.zeros(3, np.int32), 1.0, 0.0) is None
