"""Dice score of integer segmentations."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.errors import DataError


def dice_per_label(
    prediction: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], labels: Iterable[int]
) -> dict[int, float | None]:
    """Dice of each label, `2 |P and T| / (|P| + |T|)`.

    Args:
        prediction: (z, y, x) integer labels.
        truth: (z, y, x) integer labels on the same grid.
        labels: Labels to score.

    Returns:
        Score from 0 to 1 by label; None where the label is absent from both, as
        there is nothing to score, and 0 where it is absent from one.

    Raises:
        DataError: If the grids differ or the arrays are not of integers.
    """
    if prediction.shape != truth.shape:
        raise DataError(f"prediction must have the shape {truth.shape} of truth, not {prediction.shape}", "label_grid")
    for name, array in (("prediction", prediction), ("truth", truth)):
        if array.dtype.kind not in "iu":
            raise DataError(f"{name} must hold integers, not {array.dtype}", "bad_label")
    return {label: _dice(prediction == label, truth == label) for label in labels}


def _dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    size = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(prediction & truth) / size) if size else None
