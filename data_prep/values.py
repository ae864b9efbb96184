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
        self._direct = small and volume.slope == 1 and whole

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
            return np.add(values, np.float32(self._intercept), out=values) if self._intercept else values
        wide = stored.astype(np.float64)
        wide *= self._slope
        wide += self._intercept
        return wide.astype(np.float32)


def slabs(values: Planes) -> Iterator[NDArray[np.float32]]:
    """Values in order, some along the first axis at a time."""
    step = max(1, SLAB // max(1, int(np.prod(values.shape[1:]))))
    return (values[start : start + step] for start in range(0, len(values), step))


def ends(values: Planes) -> tuple[float, float]:
    """Lowest and highest value; NaN if there is any."""
    found = [(slab.min(), slab.max()) for slab in slabs(values)]
    return float(np.min([low for low, _ in found])), float(np.max([high for _, high in found]))


def whole(values: Planes) -> NDArray[np.float32]:
    """A copy of all values."""
    out = np.empty(values.shape, dtype=np.float32)
    step = max(1, SLAB // max(1, int(np.prod(values.shape[1:]))))
    for number, slab in enumerate(slabs(values)):
        out[number * step : (number + 1) * step] = slab
    return out


def grey_of(values: Planes) -> Planes:
    """(z, y, x): the values, or the mean of an image's colours."""
    return values if len(values.shape) == 3 else whole(values).mean(axis=0)


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
