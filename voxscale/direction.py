"""Directions of vectors, for cosines with gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 1e-3
"""Length below which a vector has hardly a direction. Embeddings, and differences of near neighbours, are longer."""


def direction(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Unit vectors; those shorter than `LEAST` become the shorter the shorter they are, and zeros stay zeros.

    A crop without content (air that was clipped to one value) is all zeros after norms without learnt shifts, as
    they are at first. Divided by a length of 1e-12 at least, as is usual, its gradient is 1e12 times that of others,
    and after clipping nothing else is left of the step. Here a gradient is at most 2 / `LEAST` times as large, and 0
    for a vector of zeros, from which no direction can be learnt.

    Args:
        x: Vectors.
        dim: The axis of their components.
    """
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / length.clamp(min=LEAST) * (length / LEAST).clamp(max=1)
