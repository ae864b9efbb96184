"""What is measured of a scan's values, so that nobody needs to open it to choose."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def measure(values: NDArray[np.float32], modality: Modality) -> Measured:
    """Measure a scan.

    Args:
        values: (z, y, x), or (3, 1, y, x) for colour, of which the mean is the body's brightness.
        modality: Decides what counts as body, see `foreground_threshold`.
    """
    found = np.percentile(values, PERCENTILES)
    percentiles = {str(name): float(value) for name, value in zip(PERCENTILES, found, strict=True)}
    grey = values if values.ndim == 3 else values.mean(axis=0)
    body = grey > foreground_threshold(modality, percentiles)
    box_z, box_y, box_x = (_range(np.asarray(body.any(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    inner = grey[body] if body.any() else grey
    padding = padding_value(values)
    return Measured(
        percentiles=percentiles,
        histogram=_histogram(values, float(found[0]), float(found[-1])),
        body_mean=float(inner.mean(dtype=np.float64)),
        body_std=float(inner.std(dtype=np.float64)),
        foreground_box=(box_z, box_y, box_x),
        foreground=float(body.mean()),
        occupancy=Occupancy.measure(body),
        padding=padding,
        padded=0.0 if padding is None else float((grey == padding).mean()),
    )


def _histogram(values: NDArray[np.float32], low: float, high: float) -> tuple[float, ...]:
    """Share of voxels per bin; values beyond the ends fall into the outer bins."""
    if not high > low:
        return ()
    counts, _ = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    return tuple(round(float(n) / values.size, 6) for n in counts)


def _range(present: NDArray[np.bool_]) -> Range:
    """Half-open range of the true places; all places if there are none."""
    places = np.flatnonzero(present)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(present))
