"""Interval of a figure that belongs to a whole set, not to its members."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from voxscale.errors import DataError
from voxscale.metrics.bootstrap import MeanCI

T = TypeVar("T")


def jackknife_ci(statistic: Callable[[Sequence[T]], float], groups: Sequence[T], level: float = 0.95) -> MeanCI:
    """The figure of all groups and its interval from leaving out one at a time (Efron and Tibshirani 1993, chapter 11).

    A bootstrap would show some members twice, which lowers a rank; this does not.

    Args:
        statistic: Maps groups to the figure.
        groups: Two or more, independent of one another.
        level: Coverage, between 0 and 1; the interval is Student's with as many degrees of freedom as groups less one.

    Raises:
        DataError: If there are fewer than two groups.
    """
    count = len(groups)
    if count < 2:
        raise DataError(f"groups must be at least 2, not {count}", "too_few")
    whole = statistic(groups)
    parts = np.array([statistic([g for at, g in enumerate(groups) if at != out]) for out in range(count)])
    error = float(np.sqrt((count - 1) / count * ((parts - parts.mean()) ** 2).sum()))
    from scipy import stats  # half a second at the start of every training, in which few need it

    reach = float(stats.t.ppf(0.5 + level / 2, count - 1)) * error
    return MeanCI(whole, whole - reach, whole + reach)
