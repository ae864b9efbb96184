"""Mean over cases with a bootstrap confidence interval."""

import math
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxscale.errors import DataError
from voxscale.seed import rng

BATCH = 1000
"""Resamples held in memory at once."""


class MeanCI(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: Over all cases.
        low: Lower end; None where one case says nothing about the spread.
        high: Upper end, likewise.
    """

    mean: float
    low: float | None
    high: float | None


def mean_ci(values: Sequence[float], seed: int, resamples: int = 10000, level: float = 0.95) -> MeanCI:
    """Mean and its bias-corrected and accelerated (BCa) bootstrap interval.

    Cases are resampled with replacement (Efron and Tibshirani 1993, chapter 14).
    Where BCa is not defined, as when all values are alike, the interval is the
    plain percentile one.

    Args:
        values: One number per case, so that they are independent: average seeds and repeats first.
        seed: Of the resampling.
        resamples: How many.
        level: Coverage, between 0 and 1.

    Returns:
        The mean and the interval; a single case has no interval (None), as its spread is unknown.

    Raises:
        DataError: If there are no values or one is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if data.ndim != 1 or not data.size or bad:
        raise DataError(
            f"values must be one row of finite numbers, not {data.shape} with {bad} not finite", "nonfinite"
        )
    least, most = float(data.min()), float(data.max())
    mean = min(max(float(data.mean()), least), most)  # the mean of equal numbers may be off in its last bit
    if data.size == 1:
        return MeanCI(mean, None, None)
    low, high = _interval(data, seed, resamples, level, "BCa")
    if math.isnan(low) or math.isnan(high):
        low, high = _interval(data, seed, resamples, level, "percentile")
    low, high = (min(max(end, least), most) for end in (low, high))
    return MeanCI(mean, low, high)


def _interval(
    data: NDArray[np.float64], seed: int, resamples: int, level: float, method: Literal["BCa", "percentile"]
) -> tuple[float, float]:
    from scipy import stats  # half a second at the start of every training, in which few need it

    with warnings.catch_warnings():
        # The caller handles the NaN that these warnings announce.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="scipy")
        found = stats.bootstrap(
            (data,),
            np.mean,
            n_resamples=resamples,
            batch=BATCH,
            confidence_level=level,
            method=method,
            rng=rng(seed, "bootstrap"),
        ).confidence_interval
    return float(found.low), float(found.high)
