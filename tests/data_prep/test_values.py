"""Values part by part against numpy on all of them."""

import numpy as np
import pytest

from data_prep.values import Values, ends, mean_and_std, percentiles, share_of, whole
from voxscale.volume import Volume


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (-1.0, 3.0), (0.37, 0.1)])
def test_values_are_those_of_the_volume(dtype, slope, intercept):
    stored = np.random.default_rng(0).normal(0, 40, (50, 90, 100)).astype(dtype)
    volume = Volume(stored, np.eye(4), "MR", slope, intercept)
    want, found = volume.values(), Values(volume)
    assert (len(found), found.shape, found.ndim, found.size) == (50, want.shape, 3, want.size)
    for where in (3, slice(2, 40, 3), (slice(None), [0, -1], [0, 0])):
        assert np.array_equal(found[where], want[where])
    assert np.array_equal(whole(found), want)
    assert np.array_equal(list(found), want)
    assert ends(found) == (want.min(), want.max())
    assert share_of(found, float(want[0, 0, 0])) == (want == want[0, 0, 0]).mean()
    assert np.array_equal(percentiles(found, (1, 50, 99.5)), np.percentile(want, (1, 50, 99.5)))


@pytest.mark.parametrize("count", [1, 129, 300_007, 1_000_003])
def test_mean_and_deviation_are_numpys_to_the_last_bit(count):
    numbers = np.random.default_rng(count).normal(100, 300, count).astype(np.float32)
    assert mean_and_std(numbers) == (numbers.mean(dtype=np.float64), numbers.std(dtype=np.float64))
