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
    if not 1 <= k <= len(examples):
        raise DataError(f"examples must be at least k = {k}, not {len(examples)}", "too_few")
    classes = int(labels.max()) + 1
    found: list[Tensor] = []
    for part in queries.split(CHUNK):
        near = torch.cdist(part, examples).topk(k, dim=1, largest=False).indices
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, labels[near], torch.ones_like(near, dtype=votes.dtype))
        found.append(votes.argmax(dim=1))
    return torch.cat(found)
