"""Significance of a paired difference by flipping its signs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxscale.errors import DataError
from voxscale.seed import rng

RESAMPLES = 9999
"""Random sign patterns where there are too many to go through; up to 13 pairs all are."""

BATCH = 1000
"""Sign patterns held in memory at once."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Result of a sign-flip test.

    Attributes:
        p_value: Two-sided; how often chance signs make a mean at least as far from 0.
        least_p: The smallest p-value that these pairs could have reached at all.
        n: Number of pairs.
    """

    p_value: float
    least_p: float
    n: int


def paired_test(differences: Sequence[float], seed: int) -> PairedTest:
    """Test whether paired differences are centred on 0, by flipping their signs.

    Under the null hypothesis each difference is as likely to have the other sign
    (Fisher 1935, "The Design of Experiments", chapter 3). Up to 13 pairs all sign
    patterns are tried, and p can be no smaller than 2 / 2^n, where n does not count
    zeros; beyond, `RESAMPLES` random patterns and the observed one are, and p can be
    no smaller than 2 / (RESAMPLES + 1) either.

    Args:
        differences: One number per independent case: average seeds and repeats first.
        seed: Of the random patterns.

    Raises:
        DataError: If there are no differences or one is not finite.
    """
    data = np.asarray(differences, dtype=np.float64)
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if data.ndim != 1 or not data.size or bad:
        raise DataError(
            f"differences must be one row of finite numbers, not {data.shape} with {bad} not finite", "nonfinite"
        )
    # A sign flip of zero changes nothing, so only the other pairs can tell patterns apart.
    effective = int(np.count_nonzero(data))
    exact = 2**data.size <= RESAMPLES
    least_p = max(min(2.0 ** (1 - effective), 1.0), 0.0 if exact else 2 / (RESAMPLES + 1))
    if data.size == 1:  # both signs are as far from 0, and scipy wants two values
        return PairedTest(p_value=1.0, least_p=1.0, n=1)
    from scipy import stats  # half a second at the start of every training, in which few need it

    found = stats.permutation_test(
        (data,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=rng(seed, "paired"),
    )
    return PairedTest(p_value=float(found.pvalue), least_p=least_p, n=data.size)
