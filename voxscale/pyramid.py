"""Coarser levels of a scan: each halves the axes that are still fine; means for values, majorities for classes."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 3
"""Most levels, the scan itself included."""
LEAST = 32
"""Voxels that an axis must have to be halved."""

SLAB = 1 << 20
"""Voxels that are made fewer at a time, about."""

Three = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid.

    Attributes:
        shape: Voxels along z, y, x.
        factor: Voxels of the scan along z, y, x that one voxel stands for.
    """

    shape: Three
    factor: Three


def levels(shape: Sequence[int], spacing: Sequence[float]) -> tuple[Level, ...]:
    """The levels of a scan; an axis is halved while it is less than twice as coarse as the finest one.

    Args:
        shape: Voxels along z, y, x.
        spacing: mm along z, y, x.
    """
    out = [Level(_three(shape), (1, 1, 1))]
    while len(out) < LEVELS:
        last = out[-1]
        now = [mm * f for mm, f in zip(spacing, last.factor, strict=True)]
        by = [2 if n >= LEAST and mm < 2 * min(now) else 1 for n, mm in zip(last.shape, now, strict=True)]
        if by == [1, 1, 1]:
            break
        smaller = _three([-(-n // f) for n, f in zip(last.shape, by, strict=True)])
        out.append(Level(smaller, _three([a * b for a, b in zip(last.factor, by, strict=True)])))
    return tuple(out)


def _three(values: Sequence[int]) -> Three:
    z, y, x = values
    return z, y, x


def shrink(voxels: NDArray[Any], factor: Sequence[int]) -> NDArray[Any]:
    """Mean of blocks of 1 or 2 voxels along the last three axes, rounded for integers; the last voxel repeats."""
    return _by_slabs(_means, voxels, factor)


def _by_slabs(
    smaller: Callable[[NDArray[Any], Sequence[int]], NDArray[Any]], voxels: NDArray[Any], factor: Sequence[int]
) -> NDArray[Any]:
    """Make an array smaller, some slices or rows at a time."""
    if all(by == 1 for by in factor):
        return voxels
    shape = [-(-n // by) for n, by in zip(voxels.shape[-3:], factor, strict=True)]
    out = np.empty((*voxels.shape[:-3], *shape), dtype=voxels.dtype)
    step = max(1, SLAB // max(1, voxels[..., :1, :, :].size * factor[0]))
    per_row = voxels[..., :1, :1, :].size * factor[0] * factor[1] * step
    rows = max(1, SLAB // max(1, per_row))  # of a slice that is large by itself, such as an image's, some at a time
    for start, row in itertools.product(range(0, shape[0], step), range(0, shape[1], rows)):
        slices = slice(start * factor[0], (start + step) * factor[0])
        part = voxels[..., slices, row * factor[1] : (row + rows) * factor[1], :]
        out[..., start : start + step, row : row + rows, :] = smaller(part, factor)
    return out


def _means(voxels: NDArray[Any], factor: Sequence[int]) -> NDArray[Any]:
    wide = np.float64 if voxels.dtype.itemsize > 2 and voxels.dtype != np.float32 else np.float32
    total = voxels
    for axis, by in enumerate(factor, voxels.ndim - 3):
        if by == 2:
            one, two = _pairs(total, axis)
            total = np.add(one, two, dtype=wide)
    mean = total * wide(1 / np.prod(factor))
    return (np.rint(mean, out=mean) if voxels.dtype.kind in "iu" else mean).astype(voxels.dtype)


def _pairs(voxels: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Every other voxel along an axis and the one after it."""
    where = [slice(None)] * voxels.ndim
    where[axis] = slice(0, None, 2)
    one = voxels[tuple(where)]
    where[axis] = slice(1, None, 2)
    two = voxels[tuple(where)]
    if two.shape[axis] < one.shape[axis]:
        where[axis] = slice(-1, None)
        two = np.concatenate([two, voxels[tuple(where)]], axis=axis)
    return one, two


def shrink_label(label: NDArray[np.uint8], factor: Sequence[int]) -> NDArray[np.uint8]:
    """Most frequent class of each block, of several the lowest."""
    return _by_slabs(_majorities, label, factor)


def _majorities(label: NDArray[np.uint8], factor: Sequence[int]) -> NDArray[np.uint8]:
    parts = [label]
    for axis, by in enumerate(factor):
        if by == 2:
            parts = [half for part in parts for half in _pairs(part, axis)]
    stack = np.sort(np.stack(parts), axis=0)
    best, most = stack[0].copy(), np.ones(stack.shape[1:], dtype=np.uint8)
    run = most.copy()
    for before, now in itertools.pairwise(stack):
        run = np.where(now == before, run + 1, 1).astype(np.uint8)
        better = run > most
        best[better], most[better] = now[better], run[better]
    return best


def shrink_mask(mask: NDArray[np.uint8], factor: Sequence[int]) -> NDArray[np.uint8]:
    """1 where any voxel of a block is 1: what was blanked stays marked."""
    return _by_slabs(_highest, mask, factor)


def _highest(mask: NDArray[np.uint8], factor: Sequence[int]) -> NDArray[np.uint8]:
    out = mask
    for axis, by in enumerate(factor):
        if by == 2:
            out = np.maximum(*_pairs(out, axis))
    return out
