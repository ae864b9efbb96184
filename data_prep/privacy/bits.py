"""Masks of one bit a voxel, worked on some slices at a time: opening, and the largest connected part.

A mask on the grid on which heads are looked for has the size of the body, not
of the file: at a byte a cell, and two for the number of its part, it would be
larger than a scan of coarse voxels itself.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxscale.kernel.filters import count_values, opened

TOGETHER = 1 << 20
"""Cells that are unpacked at a time, about, and all of twice as many; at least a slice."""
REACH = 2
"""Slices that an opening looks far."""


class Bits:
    """A mask (z, y, x), false at first; slices are given and taken as arrays of bools."""

    def __init__(self, shape: Sequence[int]) -> None:
        height, rows, self._columns = shape
        self._bits = np.zeros((height, rows, -(-self._columns // 8)), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._bits)

    def __getitem__(self, where: int | slice) -> NDArray[np.bool_]:
        return np.unpackbits(self._bits[where], axis=-1, count=self._columns).view(np.bool_)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[place] for place in range(len(self)))

    def put(self, start: int, part: NDArray[np.bool_]) -> None:
        """Replace the slices from one on."""
        self._bits[start : start + len(part)] = np.packbits(part, axis=-1)

    def spans(self) -> list[tuple[int, int]]:
        """Half-open ranges of slices that are worked on together."""
        plane = max(1, self._bits.shape[1] * self._columns)
        per = len(self) if plane * len(self) <= 2 * TOGETHER else max(REACH, TOGETHER // plane)
        return [(start, min(start + per, len(self))) for start in range(0, len(self), per)]


def open_mask(mask: Bits) -> None:
    """Replace a mask by its opening, see `voxscale.kernel.filters.opened`."""
    before = mask[:0]
    for start, stop in mask.spans():
        part = np.concatenate([before, mask[start : stop + REACH]])
        seen, before = len(before), mask[max(0, stop - REACH) : stop]
        mask.put(start, opened(part)[seen : seen + stop - start])


def keep_largest(mask: Bits) -> bool:
    """Keep the largest connected part alone, of equal ones the one that begins first; returns whether there is one."""
    spans, sizes, touching = mask.spans(), list[NDArray[np.int64]](), set[tuple[int, int]]()
    below: NDArray[np.int64] | None = None
    found: NDArray[Any] = np.zeros(0, dtype=np.uint16)
    firsts = [0]
    for start, stop in spans:
        found, size = _labelled(mask[start:stop])
        if below is not None:
            both = (below > 0) & (found[0] > 0)
            pairs = np.unique((below[both] << 32) + found[0][both] + firsts[-1])
            touching.update(zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True))
        below = np.where(found[-1] > 0, found[-1].astype(np.int64) + firsts[-1], 0)
        sizes.append(size)
        firsts.append(firsts[-1] + len(size))
    if firsts[-1] == 0:
        return False
    chosen = _largest(np.concatenate(sizes), touching)
    for (start, stop), first, last in zip(spans, firsts, firsts[1:], strict=False):
        if len(spans) > 1:
            found, _ = _labelled(mask[start:stop])
        kept = np.concatenate([[False], chosen[first:last]])
        mask.put(start, np.stack([kept[plane] for plane in found]))
    return True


def _labelled(part: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Numbers of the connected parts from 1, and voxels of each."""
    try:
        found, count = ndimage.label(part, output=np.uint16)
        return found, count_values(found)[1 : count + 1].copy()  # not a view that keeps all counts
    except RuntimeError:  # more parts than these numbers can tell apart
        found, count = ndimage.label(part)
        return found, sum(np.bincount(plane.reshape(-1), minlength=count + 1) for plane in found)[1:]


def _largest(sizes: NDArray[np.int64], touching: set[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which parts, numbered from 1, belong to the largest of all once those that touch are joined."""
    parent = list(range(len(sizes) + 1))

    def root(part: int) -> int:
        while parent[part] != part:
            parent[part] = parent[parent[part]]
            part = parent[part]
        return part

    for one, other in sorted(touching):
        low, high = sorted((root(one), root(other)))
        parent[high] = low  # the first part of each stands for it
    roots = np.array([root(part) for part in range(1, len(parent))])
    whole = np.zeros(len(parent), dtype=np.int64)
    np.add.at(whole, roots, sizes)
    return roots == int(np.argmax(whole))
