"""Classes by one linear map of frozen features."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.errors import DataError


def linear_classify(
    examples: Float[Tensor, "n c"],
    labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m c"],
    classes: int,
    penalty: float,
) -> Int64[Tensor, " m"]:
    """Ridge regression on the one-hot classes, solved exactly (Hastie et al. 2009, section 3.4.1); no draw, no step.

    Args:
        examples: Features whose class is known.
        labels: Their classes, below `classes`.
        queries: Features to classify.
        classes: Number of classes.
        penalty: Weight of the squared coefficients, per example; the intercept is free.

    Returns:
        Class of each query: where the fitted value is largest.

    Raises:
        DataError: If the penalty is not positive, so that the map may not be unique.
    """
    if not penalty > 0:
        raise DataError(f"penalty must be above 0, not {penalty}", "bad_penalty")
    middle = examples.double().mean(dim=0)
    x = examples.double() - middle
    target = torch.nn.functional.one_hot(labels, classes).double()
    share = target.mean(dim=0)
    square = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(square, x.T @ (target - share))
    return ((queries.double() - middle) @ weights + share).argmax(dim=1)
