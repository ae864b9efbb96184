"""The different values of a scan and how often each occurs: one pass over its integers answers many questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.kernel.filters import count_values


@dataclass(frozen=True, slots=True)
class Levels:
    """Values and counts; all that it tells is what numpy tells of the voxels themselves.

    Attributes:
        values: (n,) the different values, rising; two may be the same where float32 does not tell steps apart.
        counts: (n,) voxels of each, none of them 0.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def low(self) -> float:
        """The lowest value."""
        return float(self.values[0])

    @property
    def high(self) -> float:
        """The highest value."""
        return float(self.values[-1])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(self.counts.sum())

    def share(self, value: float) -> float:
        """Share of the voxels that hold a value."""
        return float(self.counts[self.values == value].sum() / self.size)

    def percentiles(self, wanted: Sequence[float]) -> NDArray[np.float64]:
        """Percentiles with linear interpolation, to the last bit those of `np.percentile` of the float32 voxels."""
        ends = np.cumsum(self.counts)
        place = (ends[-1] - 1) * (np.asarray(wanted, dtype=np.float64) / 100)
        before = np.floor(place)
        part = place - before
        low = self.values[np.searchsorted(ends, before, side="right")]
        high = self.values[np.searchsorted(ends, np.minimum(before + 1, ends[-1] - 1), side="right")]
        step = high - low
        return np.where(part >= 0.5, high - step * (1 - part), low + step * part)

    def above(self, threshold: float) -> "Levels":
        """The values above a threshold."""
        chosen = self.values > threshold
        return Levels(self.values[chosen], self.counts[chosen])

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and standard deviation, in float64."""
        wide = self.values.astype(np.float64)
        mean = float(wide @ self.counts) / self.size
        return mean, float(np.sqrt(((wide - mean) ** 2 @ self.counts) / self.size))


def levels_of(voxels: NDArray[Any], slope: float, intercept: float) -> Levels | None:
    """Count the values of stored integers of 8 or 16 bits; None for other number types.

    Args:
        voxels: Stored numbers of any shape.
        slope: Values per stored step.
        intercept: Value of a stored zero.
    """
    if voxels.dtype.kind not in "iu" or voxels.dtype.itemsize > 2 or not voxels.dtype.isnative:
        return None
    counts = count_values(voxels)
    present = np.flatnonzero(counts)
    stored = present + int(np.iinfo(voxels.dtype).min)
    values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    order = slice(None, None, -1 if slope < 0 else 1)
    return Levels(values[order], counts[present][order])
