"""Contrast of two views of the same nodes."""

import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.direction import direction


def info_nce(source: Float[Tensor, "b n f"], target: Float[Tensor, "b n f"], temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of finding each node's other view among its group, both ways (van den Oord et al. 2018, Eq. 4)."""
    logits = direction(source.float(), 2) @ direction(target.float(), 2).mT / temperature
    true = logits.diagonal(dim1=1, dim2=2)
    return torch.stack([logits.logsumexp(dim=dim) - true for dim in (1, 2)]).mean()
