"""The compiled filters against scipy and numpy, bit by bit, and what stands in for them without a compiler."""

import numpy as np
import pytest
from scipy import ndimage

from voxscale.kernel import filters
from voxscale.kernel.coarse import Means, coarse
from voxscale.kernel.filters import block_means, count_values, gaussian, interpolate, maximum, opened, zoom

SHAPES = [(40, 50, 60), (7, 3, 90), (1, 64, 64), (33, 17, 1), (2, 1, 1)]


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def either(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(filters, "load", lambda: None)
    elif filters.load() is None:
        pytest.skip("needs g++")


def scan(shape):
    return (np.random.default_rng(0).normal(size=shape) * 300).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["nearest", "reflect"])
@pytest.mark.parametrize(
    ("size", "steps"), [((2, 3, 4), (2, 3, 4)), ((3, 3, 3), (2, 2, 2)), ((1, 4, 5), (1, 4, 4)), ((5, 5, 1), (5, 4, 1))]
)
def test_running_means(shape, mode, size, steps):
    values, kept = scan(shape), tuple(slice(None, None, step) for step in steps)
    want = ndimage.uniform_filter(values, size, mode=mode)[kept]
    found = block_means(values, size, steps, mode)
    assert found.dtype == want.dtype
    assert np.array_equal(found, want)
    clipped = np.clip(values, np.float64(-100.1), np.float64(200.2))
    want = ndimage.uniform_filter(clipped, size, mode=mode)[kept]
    found = block_means(values, size, steps, mode, (-100.1, 200.2))
    assert found.dtype == np.float64
    assert np.array_equal(found, want)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_interpolation(shape, dtype):
    values, factor = scan(shape).astype(dtype), [1.3, 0.77, 1.01]
    want = ndimage.zoom(values, factor, order=1, mode="nearest", grid_mode=True).astype(np.float32)
    assert np.array_equal(zoom(values, factor), want)
    where = [np.arange(int(n * 0.8) + 1) * 1.07 for n in shape]
    grid = np.meshgrid(*where, indexing="ij")
    want = ndimage.map_coordinates(values, grid, order=1, mode="nearest").astype(np.float32)
    assert np.array_equal(interpolate(values, where), want)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_maximum_and_opening(shape):
    values = scan(shape)
    for factor in (1.0, 1.6):
        sigma = [factor * 1.5 * (n > 1) for n in shape]
        assert np.array_equal(gaussian(values, sigma), ndimage.gaussian_filter(values, sigma, mode="nearest"))
    reach = [2 if n > 1 else 0 for n in shape]
    assert np.array_equal(maximum(values, reach), ndimage.maximum_filter(values, [2 * n + 1 for n in reach]))
    mask = values > -200
    assert np.array_equal(opened(mask), ndimage.binary_opening(mask))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("count", [0, 1, 1001])
def test_counts(dtype, count):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    voxels = np.random.default_rng(1).integers(low, high + 1, count).astype(dtype)
    assert np.array_equal(np.repeat(np.arange(low, high + 1), count_values(voxels)), np.sort(voxels))


@pytest.mark.parametrize("shape", [*SHAPES, (70, 40, 30)])
@pytest.mark.parametrize(("size", "steps"), [((2, 3, 4), (2, 3, 4)), ((3, 2, 2), (1, 1, 2)), ((1, 4, 5), (1, 4, 4))])
@pytest.mark.parametrize("clip", [None, (-100.1, 200.2)])
def test_coarse_grids_slice_by_slice(shape, size, steps, clip, monkeypatch):
    monkeypatch.setattr("voxscale.kernel.coarse.BLOCK", 5000)
    monkeypatch.setattr("voxscale.kernel.coarse.load", filters.load)
    for mode in ("nearest", "reflect"):
        means, values = Means(size, steps, mode, clip), scan(shape)
        where = [np.arange(int(n * 0.8) + 1) * 1.07 for n in means.shape(shape)]
        want = ndimage.uniform_filter(
            values if clip is None else np.clip(values, *map(np.float64, clip)), size, mode=mode
        )
        want = want[tuple(slice(None, None, step) for step in steps)]
        want = ndimage.map_coordinates(want, np.meshgrid(*where, indexing="ij"), order=1, mode="nearest")
        assert np.array_equal(coarse(values, means, where), want.astype(np.float32))


def test_part_of_a_gaussian():
    values = scan((40, 20, 30))
    assert np.array_equal(gaussian(values, (1.5, 1.5, 1.5), (11, 23)), gaussian(values, (1.5, 1.5, 1.5))[11:23])
