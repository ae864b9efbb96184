"""Filters of scans: what scipy.ndimage and numpy give, bit by bit, several times faster where the kernel is built."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxscale.kernel import library

SLAB = 16
COLUMNS = 64
"""Slices, and places along x, filtered at a time where others do not count, to save memory."""
TRUNCATE = 4.0
"""Standard deviations after which a Gaussian ends, as in scipy."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled library with the types of these functions; None as in `library`."""
    found = library()
    if found is None:
        return None
    pointer, whole, flag, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    found.count_values.argtypes = [pointer, whole, flag, flag, pointer]
    found.running_means.argtypes = [
        pointer, flag, pointer, flag, pointer, whole, whole, flag, flag, real, real
    ]  # fmt: skip
    found.interpolate_grid.argtypes = [pointer, flag, pointer, pointer, pointer, pointer, pointer]
    found.correlate_even.argtypes = [pointer, pointer, pointer, pointer, whole]
    for function in (found.count_values, found.running_means, found.interpolate_grid, found.correlate_even):
        function.restype = None
    return found


def count_values(voxels: NDArray[Any]) -> NDArray[np.int64]:
    """Voxels of each value of 8- or 16-bit integers, from the lowest that the type holds to the highest."""
    limits, native = np.iinfo(voxels.dtype), load()
    flat = np.ascontiguousarray(voxels).reshape(-1)
    if native is None:
        places = flat.astype(np.int32) - int(limits.min)
        return np.bincount(places, minlength=int(limits.max) - int(limits.min) + 1)
    counts = np.zeros(int(limits.max) - int(limits.min) + 1, dtype=np.int64)
    native.count_values(
        flat.ctypes.data, flat.size, flat.itemsize, int(flat.dtype.kind == "i"), counts.ctypes.data
    )  # fmt: skip
    return counts


def block_means(
    values: NDArray[np.float32],
    size: Sequence[int],
    steps: Sequence[int],
    mode: Literal["nearest", "reflect"],
    clip: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """What `scipy.ndimage.uniform_filter` gives at every so many voxels.

    Lines are filtered one by one, so those that a step along an earlier axis leaves out are never looked at.

    Args:
        values: (z, y, x).
        size: Voxels of the mean along each axis.
        steps: Voxels from one place that is kept to the next, along each axis.
        mode: What lies beyond the ends, as scipy names it.
        clip: Lowest and highest value before the mean is taken; the result is float64 then, as numpy's is.
    """
    out: NDArray[Any] = values
    native = load()
    if native is not None and size[0] == 1 and max(size) > 1 and len(values) > SLAB:
        kept = values[:: steps[0]]
        slabs = [kept[start : start + SLAB] for start in range(0, len(kept), SLAB)]
        return np.concatenate([block_means(slab, size, (1, *steps[1:]), mode, clip) for slab in slabs])
    if native is None or (clip is not None and max(size) == 1):
        out, clip, native = values if clip is None else _clipped(values, clip), None, None
    if native is not None and size[0] > 1 and values.shape[2] > 2 * COLUMNS:
        slabs = [values[:, :, start : start + COLUMNS] for start in range(0, values.shape[2], COLUMNS)]
        out = np.concatenate([block_means(slab, (*size[:2], 1), (*steps[:2], 1), mode, clip) for slab in slabs], axis=2)
        size, steps, clip = (1, 1, size[2]), (1, 1, steps[2]), None
    for axis, (width, step) in enumerate(zip(size, steps, strict=True)):
        if width > 1 and native is None:
            out = ndimage.uniform_filter1d(out, width, axis=axis, mode=mode)
        if width > 1 and native is not None:
            out, clip = _means(native, out, axis, width, step, mode, clip), None
        else:
            out = out[tuple(slice(None, None, step) if number == axis else slice(None) for number in range(3))]
    return out


def _clipped(values: NDArray[np.float32], clip: tuple[float, float]) -> NDArray[Any]:
    return np.clip(values, np.float64(clip[0]), np.float64(clip[1]))


def _means(
    native: ctypes.CDLL,
    values: NDArray[Any],
    axis: int,
    width: int,
    step: int,
    mode: str,
    clip: tuple[float, float] | None,
) -> NDArray[Any]:
    source, shape = np.ascontiguousarray(values), list(values.shape)
    shape[axis] = -(-shape[axis] // step)
    wide = source.dtype == np.float64 or clip is not None
    out = np.empty(shape, dtype=np.float64 if wide else np.float32)
    low, high = clip or (0.0, 0.0)
    sides = _sides(source.shape, axis)
    native.running_means(
        source.ctypes.data, int(source.dtype == np.float64), out.ctypes.data, int(wide), sides.ctypes.data,
        width, step, int(mode == "reflect"), int(clip is not None), low, high,
    )  # fmt: skip
    return out


def _sides(shape: Sequence[int], axis: int) -> NDArray[np.int64]:
    """Numbers before, along and after an axis."""
    return np.array([np.prod(shape[:axis], dtype=int), shape[axis], np.prod(shape[axis + 1 :], dtype=int)], np.int64)


def zoom(values: NDArray[Any], factor: Sequence[float]) -> NDArray[np.float32]:
    """What `scipy.ndimage.zoom(values, factor, order=1, mode="nearest", grid_mode=True)` gives, as float32."""
    native = load()
    if native is None or all(f == 1 for f in factor):
        return np.asarray(ndimage.zoom(values, factor, order=1, mode="nearest", grid_mode=True), dtype=np.float32)
    counts = [round(n * f) for n, f in zip(values.shape, factor, strict=True)]
    where = [(np.arange(m) + 0.5) * np.divide(n, max(m, 1)) - 0.5 for n, m in zip(values.shape, counts, strict=True)]
    return _interpolated(native, values, where)


def interpolate(values: NDArray[Any], where: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Linear interpolation at the crossings of three lists of places, ends repeated, as `map_coordinates` gives it.

    Args:
        values: (z, y, x).
        where: Places in voxels along each axis.
    """
    native = load()
    if native is None:
        grid = np.meshgrid(*where, indexing="ij")
        return np.asarray(ndimage.map_coordinates(values, grid, order=1, mode="nearest"), dtype=np.float32)
    return _interpolated(native, values, where)


def _interpolated(
    native: ctypes.CDLL, values: NDArray[Any], where: Sequence[NDArray[np.float64]]
) -> NDArray[np.float32]:
    places: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    for n, along in zip(values.shape, where, strict=True):
        low = np.floor(along)
        first = 1.0 - (along - low)
        places.append(np.clip(np.stack([low, low + 1], axis=1), 0, n - 1).astype(np.int64).reshape(-1))
        weights.append(np.stack([first, 1.0 - first], axis=1).reshape(-1))
    source = np.ascontiguousarray(values)
    out = np.empty([len(along) for along in where], dtype=np.float32)
    shape, counts = np.array(source.shape, dtype=np.int64), np.array(out.shape, dtype=np.int64)
    place, weight = np.concatenate(places), np.concatenate(weights)
    native.interpolate_grid(
        source.ctypes.data, int(source.dtype == np.float64), out.ctypes.data, shape.ctypes.data, counts.ctypes.data,
        place.ctypes.data, weight.ctypes.data,
    )  # fmt: skip
    return out


def gaussian(values: NDArray[np.float32], sigma: Sequence[float]) -> NDArray[np.float32]:
    """What `scipy.ndimage.gaussian_filter(values, sigma, mode="nearest")` gives."""
    native = load()
    if native is None:
        return np.asarray(ndimage.gaussian_filter(values, sigma, mode="nearest"), dtype=np.float32)
    out = np.ascontiguousarray(values)
    for axis, width in enumerate(sigma):
        if width <= 1e-15:
            continue
        reach = int(TRUNCATE * width + 0.5)
        kernel = np.exp(-0.5 / (width * width) * np.arange(-reach, reach + 1) ** 2)
        weights = np.ascontiguousarray((kernel / kernel.sum())[reach:])
        source, out, sides = out, np.empty_like(out), _sides(out.shape, axis)
        native.correlate_even(source.ctypes.data, out.ctypes.data, sides.ctypes.data, weights.ctypes.data, reach)
    return out.copy() if out is values else out


def maximum(values: NDArray[np.float32], reach: Sequence[int]) -> NDArray[np.float32]:
    """Highest value within so many voxels along each axis, as `scipy.ndimage.maximum_filter` gives it."""
    out = values
    for axis, most in enumerate(reach):
        before, out = np.moveaxis(out, axis, 0), out.copy()
        after = np.moveaxis(out, axis, 0)
        for step in range(1, min(most, len(before) - 1) + 1):
            np.maximum(after[step:], before[:-step], out=after[step:])
            np.maximum(after[:-step], before[step:], out=after[:-step])
    return out


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What `scipy.ndimage.binary_opening` gives: voxels with all neighbours, and then the neighbours of those."""
    inner = np.pad(mask, 1)
    core = tuple(slice(1, -1) for _ in mask.shape)
    kept = mask.copy()
    for shifted in _neighbours(inner):
        kept &= shifted
    inner[core] = kept
    for shifted in _neighbours(inner):
        kept |= shifted
    return kept


def _neighbours(padded: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Views of a padded array, shifted by one voxel either way along each axis."""
    ends = (slice(0, -2), slice(2, None))
    return [
        padded[tuple(end if number == axis else slice(1, -1) for number in range(padded.ndim))]
        for axis in range(padded.ndim)
        for end in ends
    ]
