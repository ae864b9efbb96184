"""Error of what is made of hidden voxels."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voxscale.errors import DataError


def normalise_blocks(
    images: Float[Tensor, "b 1 z y x"], counted: Bool[Tensor, "b 1 z y x"], block: Sequence[int], eps: float = 1e-6
) -> tuple[Float[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]]:
    """Subtract each block's mean and divide by its deviation (He et al. 2022, MAE).

    Args:
        images: Of which each block is normalised for itself.
        counted: Voxels from which mean and deviation come.
        block: Voxels of a block along z, y, x; whole blocks fill the images.
        eps: Added to the variance.

    Returns:
        The result, and mean and deviation of each voxel's block.
    """
    shape = [len(images), *(n for size, b in zip(images.shape[2:], block, strict=True) for n in (size // b, b))]
    values, counts = images.float().view(shape), counted.view(shape).float()
    within = (2, 4, 6)
    total = counts.sum(within, keepdim=True).clamp(min=1)
    mean = (values * counts).sum(within, keepdim=True) / total
    variance = ((values - mean).square() * counts).sum(within, keepdim=True) / total
    deviation = (variance + eps).sqrt()
    parts = ((values - mean) / deviation, mean.expand(shape), deviation.expand(shape))
    first, second, third = (part.reshape(images.shape) for part in parts)
    return first, second, third


def masked_error(
    guess: Float[Tensor, "b 1 z y x"],
    truth: Float[Tensor, "b 1 z y x"],
    counted: Bool[Tensor, "b 1 z y x"],
    kind: Literal["l1", "l2"],
) -> Float[Tensor, ""]:
    """Mean absolute or squared error over a sample's counted voxels, then over samples, so that batches may be split.

    A sample without any such voxel counts as 0.

    Raises:
        DataError: If the shapes differ.
    """
    if not guess.shape == truth.shape == counted.shape:
        shapes = f"{tuple(guess.shape)}, {tuple(truth.shape)} and {tuple(counted.shape)}"
        raise DataError(f"guess, truth and counted must have one shape, not {shapes}", "grid")
    # Chosen, not multiplied, so that a value which is not finite elsewhere has no gradient either.
    difference = torch.where(counted, guess.float() - truth, 0.0)
    error = difference.abs() if kind == "l1" else difference.square()
    return (error.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)).mean()
