"""What is measured of a scan's values, so that nobody needs to open it to choose."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.levels import Levels
from data_prep.rules.padding import padding_value
from voxscale.contract import PERCENTILES, foreground_threshold
from voxscale.entry import Occupancy
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


def measure(values: NDArray[np.float32], modality: Modality, levels: Levels | None = None) -> Measured:
    """Measure a scan.

    Args:
        values: (z, y, x), or (3, 1, y, x) for colour, of which the mean is the body's brightness.
        modality: Decides what counts as body, see `foreground_threshold`.
        levels: Their different values, if they were counted.
    """
    found = levels.percentiles(PERCENTILES) if levels else np.percentile(values, PERCENTILES)
    percentiles = {str(name): float(value) for name, value in zip(PERCENTILES, found, strict=True)}
    grey = values if values.ndim == 3 else values.mean(axis=0)
    threshold = foreground_threshold(modality, percentiles)
    body = np.greater(grey, threshold)
    flat = np.asarray(body.any(axis=0))  # of its rows and columns the same may be told
    box_z, box_y, box_x = map(_range, (body.any(axis=(1, 2)), flat.any(axis=1), flat.any(axis=0)))
    padding = padding_value(values, levels.low if levels else None)
    known = levels if values.ndim == 3 else None
    mean, std = _of_body(grey, body) if known is None else _of_levels(known, threshold)
    padded = 0.0 if padding is None else known.share(padding) if known else float((grey == padding).mean())
    return Measured(
        percentiles=percentiles,
        histogram=_histogram(values, levels, float(found[0]), float(found[-1])),
        body_mean=mean,
        body_std=std,
        foreground_box=(box_z, box_y, box_x),
        foreground=float(np.count_nonzero(body) / body.size),
        occupancy=Occupancy.measure(body),
        padding=padding,
        padded=padded,
    )


def _of_body(grey: NDArray[np.float32], body: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and standard deviation of the body, of all voxels if there is none."""
    inner = grey[body] if body.any() else grey
    return float(inner.mean(dtype=np.float64)), float(inner.std(dtype=np.float64))


def _of_levels(levels: Levels, threshold: float) -> tuple[float, float]:
    """The same from counts."""
    inner = levels.above(threshold)
    return (inner if len(inner.values) else levels).mean_and_std()


def _histogram(values: NDArray[np.float32], levels: Levels | None, low: float, high: float) -> tuple[float, ...]:
    """Share of voxels per bin; values beyond the ends fall into the outer bins."""
    if not high > low:
        return ()
    data, weights = (values, None) if levels is None else (levels.values, levels.counts)
    counts, _ = np.histogram(np.clip(data, low, high), bins=BINS, range=(low, high), weights=weights)
    return tuple(round(float(n) / values.size, 6) for n in counts)


def _range(present: NDArray[np.bool_]) -> Range:
    """Half-open range of the true places; all places if there are none."""
    places = np.flatnonzero(present)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(present))
