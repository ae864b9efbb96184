"""Values part by part against numpy on all of them."""

import numpy as np
import pytest

import data_prep.values
from data_prep.values import Values, ends, grey_of, mean_and_std, percentiles, pieces, share_of, slabs, whole
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


def test_floats_are_the_same_bit_by_bit():
    rng = np.random.default_rng(0)
    odd = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, np.finfo(np.float32).max]
    stored = rng.choice(np.concatenate([odd, rng.normal(0, 9, 40)]), (4, 9, 10)).astype(np.float32)
    for scale in ((1.0, 0.0), (1.0, -0.0), (-1.0, 0.0), (1.0, 3.0)):
        want = (stored.astype(np.float64) * scale[0] + scale[1]).astype(np.float32)
        found = whole(Values(Volume(stored, np.eye(4), "MR", *scale)))
        assert np.array_equal(found.view(np.uint32), want.view(np.uint32)), scale


@pytest.mark.parametrize("shape", [(5, 7, 9), (1, 7, 9), (3, 1, 7, 9), (40, 2, 3)])
@pytest.mark.parametrize("slab", [1, 8, 20, 63, 64, 130, 10_000])
def test_pieces_follow_one_another_in_memory(shape, slab, monkeypatch):
    monkeypatch.setattr(data_prep.values, "SLAB", slab)
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parts = [numbers[where] for where in pieces(shape)]
    assert np.array_equal(np.concatenate([part.reshape(-1) for part in parts]), numbers.reshape(-1))
    assert max(part.size for part in parts) <= max(slab, shape[-1])
    assert np.array_equal(np.concatenate([part.reshape(-1) for part in slabs(numbers)]), numbers.reshape(-1))
    assert np.array_equal(whole(numbers), numbers)


def test_grey_is_the_mean_of_colours_wherever_it_is_asked_for():
    colours = np.random.default_rng(0).integers(0, 65536, (3, 1, 30, 40)).astype(np.float32)
    want, found = colours.mean(axis=0), grey_of(colours)
    assert (found.shape, len(found)) == (want.shape, 1)
    for where in (0, slice(0, 1), slice(None), (slice(0, 1), slice(3, 9)), (slice(None), [0, -1], [0, 0])):
        assert np.array_equal(found[where], want[where])
    assert grey_of(want) is want
