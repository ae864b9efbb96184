"""Classes by the nearest examples."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.errors import DataError

CHUNK = 2048
"""Queries compared at once."""


def knn_classify(
    examples: Float[Tensor, "n c"], labels: Int64[Tensor, " n"], queries: Float[Tensor, "m c"], k: int
) -> Int64[Tensor, " m"]:
    """The commonest class among the k nearest examples by Euclidean distance (Cover and Hart 1967).

    Args:
        examples: Features whose class is known.
        labels: Their classes.
        queries: Features to classify.
        k: Neighbours that vote.

    Returns:
        Class of each query; of classes with equally many votes the lowest.

    Raises:
        DataError: If there are fewer examples than neighbours.
    """
    return vote(labels[nearest_examples(examples, queries, k)])


def nearest_examples(examples: Float[Tensor, "n c"], queries: Float[Tensor, "m c"], k: int) -> Int64[Tensor, "m k"]:
    """Numbers of the k nearest examples of each query, as in `knn_classify`."""
    if not 1 <= k <= len(examples):
        raise DataError(f"examples must be at least k = {k}, not {len(examples)}", "too_few")
    parts = [torch.cdist(part, examples).topk(k, dim=1, largest=False).indices for part in queries.split(CHUNK)]
    return torch.cat(parts)


def vote(classes: Int64[Tensor, "m k"]) -> Int64[Tensor, " m"]:
    """The commonest of each row; of equally common ones the lowest."""
    counts = torch.zeros(len(classes), int(classes.max()) + 1, device=classes.device)
    counts.scatter_add_(1, classes, torch.ones_like(classes, dtype=counts.dtype))
    return counts.argmax(dim=1)
