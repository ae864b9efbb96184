"""The coarse grid on which a head is looked for: kept if it is small, else made anew, some slices at a time."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from data_prep.privacy.bits import Bits
from voxscale.kernel.coarse import Means, coarse, coarse_parts
from voxscale.kernel.filters import Planes, zoom_places

COARSE = (4.0, 2.0, 2.0)
"""mm of the grid along z, y, x."""
KEPT_CELLS = 1 << 21
"""Cells up to which it is kept: a head's field of view has half as many."""


class Coarse:
    """A scan at `COARSE` spacing, smoothed against aliasing; made anew for each question if it is large.

    Args:
        values: (z, y, x).
        spacing: mm along z, y, x.
    """

    def __init__(self, values: Planes, spacing: tuple[float, float, float]) -> None:
        self._values = values
        steps = [max(1, round(want / have)) for want, have in zip(COARSE, spacing, strict=True)]
        self._means = Means(steps, steps, "reflect")
        factor = [have * step / want for have, step, want in zip(spacing, steps, COARSE, strict=True)]
        self._where = zoom_places(self._means.shape(values.shape), factor)
        self.shape = tuple(len(along) for along in self._where)
        small = math.prod(self.shape) <= KEPT_CELLS
        self._kept = coarse(values, self._means, self._where) if small else None

    def percentile(self, wanted: float) -> float:
        """One percentile, as numpy computes it."""
        if self._kept is None:
            return percentile_of(self._parts, wanted)
        return float(np.percentile(self._kept.copy(), wanted, overwrite_input=True))

    def above(self, threshold: float) -> Bits:
        """Where it is above a threshold."""
        out, done = Bits(self.shape), 0
        for part in self._parts():
            out.put(done, part > threshold)
            done += len(part)
        return out

    def cut(self, first: int, stop: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        """A copy of some slices, of these rows and columns."""
        found, done = list[NDArray[np.float32]](), 0
        for part in self._parts():
            if first < done + len(part):
                found.append(part[max(0, first - done) : stop - done, rows, columns].copy())
            done += len(part)
            if done >= stop:
                break
        return np.concatenate(found)

    def _parts(self) -> Iterator[NDArray[np.float32]]:
        return coarse_parts(self._values, self._means, self._where) if self._kept is None else iter((self._kept,))


def percentile_of(parts: Callable[[], Iterator[NDArray[np.float32]]], wanted: float) -> float:
    """What `np.percentile` gives of numbers that are made anew, part by part, twice.

    The numbers on either side are found by counting: their upper 16 bits first, then the lower ones of those that
    have the same upper ones.

    Args:
        parts: Makes the numbers; at least one.
        wanted: In percent.
    """
    upper = np.zeros(1 << 16, dtype=np.int64)
    for part in parts():
        if np.isnan(part).any():
            return math.nan
        upper += np.bincount(_keys(part) >> 16, minlength=len(upper))
    ends = np.cumsum(upper)
    place = (int(ends[-1]) - 1) * (wanted / 100)
    before = math.floor(place)
    ranks = [before, min(before + 1, int(ends[-1]) - 1)]
    tops = np.searchsorted(ends, ranks, side="right").tolist()
    lower = {top: np.zeros(1 << 16, dtype=np.int64) for top in tops}
    for part in parts():
        keys = _keys(part)
        for top, counts in lower.items():
            counts += np.bincount(keys[keys >> 16 == top] & 0xFFFF, minlength=len(counts))
    low, high = (
        _number(top << 16 | int(np.searchsorted(np.cumsum(lower[top]), rank - ends[top] + upper[top], side="right")))
        for top, rank in zip(tops, ranks, strict=True)
    )
    share, step = place - before, high - low
    return float(high - step * (1 - share) if share >= 0.5 else low + step * share)


def _keys(part: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Whole numbers in the order of the given ones: the sign's bit says below or above the middle."""
    bits = np.ascontiguousarray(part).reshape(-1).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _number(key: int) -> np.float32:
    """The number of a key."""
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return np.array(bits, dtype=np.uint32).view(np.float32)[()]
