"""Classes by one linear map of frozen features."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from voxscale.errors import DataError


def linear_classify(
    examples: Float[Tensor, "n c"],
    labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m c"],
    classes: int,
    shrinkage: float,
) -> Int64[Tensor, " m"]:
    """Linear discriminant analysis, solved exactly (Hastie et al. 2009, chapter 4); no draw, no step.

    Unlike a regression of one-hot classes it names a class that lies between two others.

    Args:
        examples: Features whose class is known.
        labels: Their classes, below `classes`.
        queries: Features to classify.
        classes: Number of classes; one without examples is never named.
        shrinkage: Share of the covariance within classes that is replaced by a multiple of the identity.

    Returns:
        Class of each query.

    Raises:
        DataError: If the shrinkage is not above 0 and at most 1, so that the map may not be unique.
    """
    if not 0 < shrinkage <= 1:
        raise DataError(f"shrinkage must be above 0 and at most 1, not {shrinkage}", "bad_shrinkage")
    x = examples.double()
    member = F.one_hot(labels, classes).double()
    counts = member.sum(dim=0)
    means = member.T @ x / counts.clamp(min=1)[:, None]
    within = x - means[labels]
    covariance = within.T @ within / len(x)
    width = x.shape[1]
    round_ = covariance.trace() / width * torch.eye(width, dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * round_ + _tiny(round_), means.T)
    bias = (counts / len(x)).log() - 0.5 * (means.T * weights).sum(dim=0)
    return (queries.double() @ weights + bias).argmax(dim=1)


def _tiny(scale: Tensor) -> Tensor:
    """Keeps features that never vary within classes from dividing by 0."""
    return torch.eye(len(scale), dtype=scale.dtype, device=scale.device) * torch.finfo(torch.float32).tiny
