"""A scan on a coarser grid: means of blocks, then linear interpolation, some slices at a time."""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxscale.kernel.filters import Planes, block_means, interpolate, load, places_and_weights

BLOCK = 1 << 17
"""Voxels that are worked on at a time, about; at least a slice."""


@dataclass(frozen=True, slots=True)
class Means:
    """Means of blocks of voxels, see `voxscale.kernel.filters.block_means`.

    Attributes:
        size: Voxels of the mean along each axis.
        steps: Voxels from one place that is kept to the next, along each axis.
        mode: What lies beyond the ends, as scipy names it.
        clip: Lowest and highest value before the mean is taken.
    """

    size: Sequence[int]
    steps: Sequence[int]
    mode: Literal["nearest", "reflect"]
    clip: tuple[float, float] | None = None

    def shape(self, voxels: Sequence[int]) -> list[int]:
        """Means along each axis of so many voxels."""
        return [-(-n // step) for n, step in zip(voxels, self.steps, strict=True)]


def coarse(values: Planes, means: Means, where: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """What `interpolate(block_means(values, ...), where)` gives, without all of the means at once.

    Args:
        values: (z, y, x).
        means: The means.
        where: Places along each axis, in means; rising.
    """
    out = np.empty([len(along) for along in where], dtype=np.float32)
    done = 0
    for part in coarse_parts(values, means, where):
        out[done : done + len(part)] = part
        done += len(part)
    return out


def coarse_parts(values: Planes, means: Means, where: Sequence[NDArray[np.float64]]) -> Iterator[NDArray[np.float32]]:
    """The same in order, some along the first axis at a time."""
    native = load()
    if native is None:
        yield interpolate(block_means(values[:], means.size, means.steps, means.mode, means.clip), where)
        return
    (z, y, x), (wz, wy, wx) = places_and_weights(means.shape(values.shape), where)
    sides = [len(along) for along in where[1:]]
    block, done, end = None, 0, 0
    cells = len(where[0]) * sides[0] * sides[1] // max(1, len(values))
    for fresh in _blocks(native, values, means, max(cells, int(np.prod(values.shape[1:])))):
        block = np.ascontiguousarray(fresh if block is None else np.concatenate([block[-1:], fresh]))
        end += len(fresh)
        first, last = end - len(block), int(np.searchsorted(z[:, 1], end))
        part = np.empty((last - done, *sides), dtype=np.float32)
        shape, counts = np.array(block.shape, dtype=np.int64), np.array(part.shape, dtype=np.int64)
        place = np.concatenate([(z[done:last] - first).reshape(-1), y.reshape(-1), x.reshape(-1)])
        weight = np.concatenate([wz[done:last].reshape(-1), wy.reshape(-1), wx.reshape(-1)])
        native.interpolate_grid(
            block.ctypes.data, int(block.dtype == np.float64), part.ctypes.data, shape.ctypes.data,
            counts.ctypes.data, place.ctypes.data, weight.ctypes.data,
        )  # fmt: skip
        done = last
        yield part


def _blocks(native: ctypes.CDLL, values: Planes, means: Means, plane: int) -> Iterator[NDArray[Any]]:
    """The means in order, some along the first axis at a time; of a slice `plane` voxels or cells are made."""
    per = max(1, BLOCK // max(1, plane))
    size, steps = (1, *means.size[1:]), (1, *means.steps[1:])
    if means.size[0] > 1:
        for block in _along_z(native, values, means, per):
            yield block_means(block, size, steps, means.mode)
        return
    step = means.steps[0]
    for start in range(0, len(values), per * step):
        yield block_means(values[start : start + per * step : step], size, steps, means.mode, means.clip)


def _along_z(native: ctypes.CDLL, values: Planes, means: Means, per: int) -> Iterator[NDArray[Any]]:
    """Running means along the first axis alone, of which each is the one before plus a slice less another."""
    width, step, before, length = means.size[0], means.steps[0], means.size[0] // 2, len(values)
    rows, plane = _Rows(values, per, means.mode == "reflect"), tuple(values.shape[1:])
    total, wide = np.zeros(plane), means.clip is not None
    low, high = means.clip or (0.0, 0.0)
    kept = np.empty((per, *plane), dtype=np.float64 if wide else np.float32)
    count = 0

    def add(comes: int, goes: int | None, out: NDArray[Any] | None) -> None:
        new, old = rows[comes], None if goes is None else rows[goes]
        native.add_planes(
            total.ctypes.data, new.ctypes.data, None if old is None else old.ctypes.data,
            None if out is None else out.ctypes.data, int(wide), total.size, width, int(wide), low, high,
        )  # fmt: skip

    for place in range(width - 1):
        add(place - before, None, None)
    for place in range(length):
        out = None if place % step else kept[count]
        add(place - before + width - 1, place - before - 1 if place else None, out)
        count += out is not None
        if count == per or (place == length - 1 and count):
            yield kept[:count]
            rows.forget(place - width)
            kept, count = np.empty_like(kept), 0


class _Rows:
    """Slices by their number, which may lie beyond the ends; some are kept, as each is asked for twice."""

    def __init__(self, values: Planes, per: int, reflect: bool) -> None:
        self._values, self._per, self._reflect = values, per, reflect
        self._slabs: dict[int, NDArray[np.float32]] = {}

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        place = self._inside(number)
        slab = place // self._per
        if slab not in self._slabs:
            start = slab * self._per
            self._slabs[slab] = np.ascontiguousarray(self._values[start : start + self._per])
        return self._slabs[slab][place % self._per]

    def forget(self, before: int) -> None:
        """Let go of slices before one."""
        for slab in [slab for slab in self._slabs if (slab + 1) * self._per <= before]:
            del self._slabs[slab]

    def _inside(self, number: int) -> int:
        length = len(self._values)
        if not self._reflect:
            return min(max(number, 0), length - 1)
        number %= 2 * length
        return number if number < length else 2 * length - 1 - number
