"""The values of a scan, turned into float32 part by part: all of them at once may need four times the scan's memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.kernel.filters import Planes
from voxscale.volume import Volume

SLAB = 1 << 18
"""Voxels that are looked at together, about."""
EXACT = 1 << 23
"""Below this, whole numbers of 16 bits and their sums are exact in float32."""


class Values:
    """What `Volume.values` gives, but only of what is asked for, and as the voxels are at that time.

    Attributes:
        shape: (z, y, x), or (3, 1, y, x) for colour.
    """

    def __init__(self, volume: Volume) -> None:
        self.shape: tuple[int, ...] = volume.voxels.shape
        self._voxels, self._slope, self._intercept = volume.voxels, volume.slope, volume.intercept
        small = volume.voxels.dtype.kind in "iu" and volume.voxels.dtype.itemsize <= 2
        whole = float(volume.intercept).is_integer() and abs(volume.intercept) < EXACT
        same = volume.voxels.dtype == np.float32 and volume.intercept == 0
        self._direct = volume.slope == 1 and (same or (small and whole))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self._voxels.size)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, where: Any) -> NDArray[np.float32]:
        stored = self._voxels[where]
        if self._direct:
            values = stored.astype(np.float32)
            add = self._intercept or values.dtype == stored.dtype  # a zero too: it makes -0 of a float 0
            return np.add(values, np.float32(self._intercept), out=values) if add else values
        wide = stored.astype(np.float64)
        wide *= self._slope
        wide += self._intercept
        return wide.astype(np.float32)


def pieces(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of about `SLAB` voxels that follow one another in memory: some slices, or some rows of a large one.

    Args:
        shape: (z, y, x), or (3, 1, y, x).
    """
    *outer, rows, columns = shape
    plane = rows * columns * (outer[1] if len(outer) > 1 else 1)
    if plane <= SLAB:
        step = max(1, SLAB // max(1, plane))
        yield from ((slice(start, start + step),) for start in range(0, shape[0], step))
        return
    step = max(1, SLAB // columns)
    for place in np.ndindex(*outer):
        before = tuple(slice(n, n + 1) for n in place)
        yield from ((*before, slice(row, row + step)) for row in range(0, rows, step))


def slabs(values: Planes) -> Iterator[NDArray[np.float32]]:
    """Values in order, some at a time."""
    return (values[where] for where in pieces(values.shape))


def ends(values: Planes) -> tuple[float, float]:
    """Lowest and highest value; NaN if there is any."""
    found = [(slab.min(), slab.max()) for slab in slabs(values)]
    return float(np.min([low for low, _ in found])), float(np.max([high for _, high in found]))


def whole(values: Planes) -> NDArray[np.float32]:
    """A copy of all values."""
    out = np.empty(values.shape, dtype=np.float32)
    for where in pieces(values.shape):
        out[where] = values[where]
    return out


def grey_of(values: Planes) -> Planes:
    """(z, y, x): the values, or the mean of an image's colours."""
    return values if len(values.shape) == 3 else _Grey(values)


class _Grey:
    """The mean of an image's colours, (1, y, x), made where it is asked for."""

    def __init__(self, values: Planes) -> None:
        self._values, self.shape = values, values.shape[1:]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> NDArray[np.float32]:
        inner = where if isinstance(where, tuple) else (where,)
        return np.asarray(self._values[(slice(None), *inner)], dtype=np.float32).mean(axis=0)


def percentiles(values: Planes, wanted: Sequence[float]) -> NDArray[np.float64]:
    """What `np.percentile` gives of all values."""
    return np.percentile(whole(values), wanted, overwrite_input=True)


def share_of(values: Planes, value: float) -> float:
    """Share of the values that are equal to one."""
    return sum(int(np.count_nonzero(slab == value)) for slab in slabs(values)) / int(np.prod(values.shape))


def mean_and_std(chosen: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and standard deviation of numbers in a row, to the last bit as numpy computes them in float64."""
    mean = chosen.mean(dtype=np.float64)
    return float(mean), float(np.sqrt(_squares(chosen, mean) / len(chosen)))


def _squares(chosen: NDArray[np.float32], mean: np.float64) -> np.float64:
    """Sum of squares around the mean, in the order of numpy's pairwise summation, without an array of all squares."""
    if len(chosen) > SLAB:
        half = len(chosen) // 2
        half -= half % 8  # numpy halves in this way, down to 128 numbers
        return _squares(chosen[:half], mean) + _squares(chosen[half:], mean)
    apart = chosen - mean
    return np.add.reduce(np.multiply(apart, apart, out=apart))
