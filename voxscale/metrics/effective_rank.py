"""How many directions a set of embeddings really uses."""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(embeddings: Float[Tensor, "n c"]) -> float:
    """Exponential of the entropy of the singular values' shares (Roy and Vetterli, EUSIPCO 2007).

    Embeddings are centred first, so that a direction that all have in common does not count.

    Args:
        embeddings: One row per sample; computed in float64 whatever their type.

    Returns:
        From 1, one direction alone, to the smaller of n - 1 and c; 0 if all rows are equal.
    """
    data = embeddings.double()
    values = torch.linalg.svdvals(data - data.mean(dim=0))
    # Rows that are equal differ in their last bits after the mean is taken away.
    noise = 1e-12 * float(data.norm())
    values = values[values > noise]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
