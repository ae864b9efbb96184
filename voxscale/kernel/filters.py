"""Filters of scans: what scipy.ndimage and numpy give, bit by bit, several times faster where the kernel is built."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxscale.kernel import library

TRUNCATE = 4.0
"""Standard deviations after which a Gaussian ends, as in scipy."""
TOGETHER = 1 << 20
"""Numbers that are counted at a time where they do not lie in a row."""


class Planes(Protocol):
    """Values of a scan, (z, y, x) float32: an array, or something that makes the parts that are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, where: Any, /) -> Any: ...


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled library with the types of these functions; None as in `library`."""
    found = library()
    if found is None:
        return None
    pointer, whole, flag, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    found.count_values.argtypes = [pointer, whole, flag, flag, pointer]
    found.add_planes.argtypes = [
        pointer, pointer, pointer, pointer, flag, whole, whole, flag, real, real
    ]  # fmt: skip
    found.running_means.argtypes = [
        pointer, flag, pointer, flag, pointer, whole, whole, flag, flag, real, real
    ]  # fmt: skip
    found.interpolate_grid.argtypes = [pointer, flag, pointer, pointer, pointer, pointer, pointer]
    found.correlate_even.argtypes = [pointer, pointer, pointer, pointer, whole, whole, whole]
    functions = (found.count_values, found.add_planes, found.running_means, found.interpolate_grid)
    for function in (*functions, found.correlate_even):
        function.restype = None
    return found


def count_values(voxels: NDArray[Any]) -> NDArray[np.int64]:
    """Voxels of each value of 8- or 16-bit integers, from the lowest that the type holds to the highest."""
    limits, native = np.iinfo(voxels.dtype), load()
    counts = np.zeros(int(limits.max) - int(limits.min) + 1, dtype=np.int64)
    if native is not None and voxels.flags.c_contiguous:
        native.count_values(
            voxels.ctypes.data, voxels.size, voxels.itemsize, int(voxels.dtype.kind == "i"), counts.ctypes.data
        )  # fmt: skip
        return counts
    for part in np.array_split(voxels, max(1, min(len(voxels), voxels.size // TOGETHER))):
        if native is None:
            counts += np.bincount(part.astype(np.int32).reshape(-1) - int(limits.min), minlength=len(counts))
        else:
            counts += count_values(np.ascontiguousarray(part))
    return counts


def different(voxels: NDArray[Any]) -> NDArray[Any]:
    """What `numpy.unique` gives, without a sorted copy of all."""
    if voxels.dtype.kind in "iu" and voxels.itemsize <= 2:
        return (np.flatnonzero(count_values(voxels)) + int(np.iinfo(voxels.dtype).min)).astype(voxels.dtype)
    return np.unique(np.concatenate([np.unique(part) for part in voxels]))


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
    if native is None or (clip is not None and max(size) == 1):
        out, clip, native = values if clip is None else _clipped(values, clip), None, None
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
    return _interpolated(native, values, zoom_places(values.shape, factor))


def zoom_places(shape: Sequence[int], factor: Sequence[float]) -> list[NDArray[np.float64]]:
    """Places along each axis at which `zoom` looks, in voxels."""
    counts = [round(n * f) for n, f in zip(shape, factor, strict=True)]
    return [(np.arange(m) + 0.5) * np.divide(n, max(m, 1)) - 0.5 for n, m in zip(shape, counts, strict=True)]


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
    places, weights = places_and_weights(values.shape, where)
    source = np.ascontiguousarray(values)
    out = np.empty([len(along) for along in where], dtype=np.float32)
    shape, counts = np.array(source.shape, dtype=np.int64), np.array(out.shape, dtype=np.int64)
    place, weight = (np.concatenate([part.reshape(-1) for part in parts]) for parts in (places, weights))
    native.interpolate_grid(
        source.ctypes.data, int(source.dtype == np.float64), out.ctypes.data, shape.ctypes.data, counts.ctypes.data,
        place.ctypes.data, weight.ctypes.data,
    )  # fmt: skip
    return out


def places_and_weights(
    shape: Sequence[int], where: Sequence[NDArray[np.float64]]
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float64]]]:
    """Of linear interpolation: the two voxels (n, 2) around each place along each axis, and what each counts."""
    places: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    for n, along in zip(shape, where, strict=True):
        low = np.floor(along)
        first = 1.0 - (along - low)
        places.append(np.clip(np.stack([low, low + 1], axis=1), 0, n - 1).astype(np.int64))
        weights.append(np.stack([first, 1.0 - first], axis=1))
    return places, weights


def gaussian(
    values: NDArray[np.float32], sigma: Sequence[float], span: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """What `scipy.ndimage.gaussian_filter(values, sigma, mode="nearest")` gives.

    Args:
        values: (z, y, x).
        sigma: Standard deviation along each axis, in voxels.
        span: Half-open range along the first axis of what is wanted; None takes all.
    """
    first, last = span or (0, len(values))
    native = load()
    if native is None:
        return np.asarray(ndimage.gaussian_filter(values, sigma, mode="nearest")[first:last], dtype=np.float32)
    out = np.ascontiguousarray(values)
    for axis, width in enumerate(sigma):
        if width > 1e-15:
            reach = int(TRUNCATE * width + 0.5)
            kernel = np.exp(-0.5 / (width * width) * np.arange(-reach, reach + 1) ** 2)
            weights = np.ascontiguousarray((kernel / kernel.sum())[reach:])
            source, sides = out, _sides(out.shape, axis)
            ends = (first, last) if axis == 0 and sides[2] > 1 else (0, out.shape[axis])
            out = np.empty((ends[1] - ends[0] if axis == 0 else len(out), *values.shape[1:]), dtype=np.float32)
            native.correlate_even(
                source.ctypes.data, out.ctypes.data, sides.ctypes.data, weights.ctypes.data, reach, *ends
            )  # fmt: skip
        if axis == 0 and len(out) > last - first:
            out = out[first:last]
    return out.copy() if np.may_share_memory(out, values) else out


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
