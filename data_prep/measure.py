"""What is measured of a scan's values, so that nobody needs to open it to choose."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.levels import Levels
from data_prep.rules.padding import padding_value
from data_prep.values import grey_of, mean_and_std, percentiles, pieces, share_of, slabs, whole
from voxscale.contract import PERCENTILES, foreground_threshold
from voxscale.entry import Occupancy
from voxscale.kernel.filters import Planes
from voxscale.volume import Modality

BINS = 64
"""Bins of the histogram kept of each scan."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """Fields of `voxscale.entry.Entry` that come from the values; see there."""

    percentiles: dict[str, float]
    histogram: tuple[float, ...]
    body_mean: float
    body_std: float
    foreground_box: tuple[Range, Range, Range]
    foreground: float
    occupancy: Occupancy
    padding: float | None
    padded: float


def measure(values: Planes, modality: Modality, levels: Levels | None = None) -> Measured:
    """Measure a scan.

    Args:
        values: (z, y, x), or (3, 1, y, x) for colour, of which the mean is the body's brightness.
        modality: Decides what counts as body, see `foreground_threshold`.
        levels: Their different values, if they were counted.
    """
    found = levels.percentiles(PERCENTILES) if levels else percentiles(values, PERCENTILES)
    named = {str(name): float(value) for name, value in zip(PERCENTILES, found, strict=True)}
    grey = grey_of(values)
    threshold = foreground_threshold(modality, named)
    body = _above(grey, threshold)
    flat = np.asarray(body.any(axis=0))  # of its rows and columns the same may be told
    box_z, box_y, box_x = map(_range, (body.any(axis=(1, 2)), flat.any(axis=1), flat.any(axis=0)))
    padding = padding_value(values, levels.low if levels else None)
    known = levels if len(values.shape) == 3 else None
    mean, std = _of_body(grey, body) if known is None else _of_levels(known, threshold)
    padded = 0.0 if padding is None else known.share(padding) if known else share_of(grey, padding)
    return Measured(
        percentiles=named,
        histogram=_histogram(values, levels, float(found[0]), float(found[-1])),
        body_mean=mean,
        body_std=std,
        foreground_box=(box_z, box_y, box_x),
        foreground=float(np.count_nonzero(body) / body.size),
        occupancy=Occupancy.measure(body),
        padding=padding,
        padded=padded,
    )


def _above(grey: Planes, threshold: float) -> NDArray[np.bool_]:
    """Where the values are above a threshold."""
    body = np.empty(grey.shape, dtype=bool)
    for where in pieces(grey.shape):
        np.greater(grey[where], threshold, out=body[where])
    return body


def _of_body(grey: Planes, body: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and standard deviation of the body, of all voxels if there is none."""
    count = np.count_nonzero(body)
    if not count:
        return mean_and_std(whole(grey).reshape(-1))
    inner = np.empty(count, dtype=np.float32)
    taken = 0
    for where in pieces(grey.shape):
        chosen = grey[where][body[where]]
        inner[taken : taken + len(chosen)] = chosen
        taken += len(chosen)
    return mean_and_std(inner)


def _of_levels(levels: Levels, threshold: float) -> tuple[float, float]:
    """The same from counts."""
    inner = levels.above(threshold)
    return (inner if len(inner.values) else levels).mean_and_std()


def _histogram(values: Planes, levels: Levels | None, low: float, high: float) -> tuple[float, ...]:
    """Share of voxels per bin; values beyond the ends fall into the outer bins."""
    if not high > low:
        return ()
    parts = ((slab, None) for slab in slabs(values)) if levels is None else ((levels.values, levels.counts),)
    counts = sum(_counted(data, weights, low, high) for data, weights in parts)
    return tuple(round(float(n) / int(np.prod(values.shape)), 6) for n in counts)


def _counted(
    data: NDArray[np.float32], weights: NDArray[np.int64] | None, low: float, high: float
) -> NDArray[np.int64]:
    return np.histogram(np.clip(data, low, high), bins=BINS, range=(low, high), weights=weights)[0]


def _range(present: NDArray[np.bool_]) -> Range:
    """Half-open range of the true places; all places if there are none."""
    places = np.flatnonzero(present)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(present))
