"""Squared earth mover's distance between class probabilities: for classes that have an order."""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from voxscale.errors import DataError
from voxscale.samples import OWN, Samples


def earth_mover_loss(
    logits: Float[Tensor, "b k z y x"],
    target: UInt8[Tensor, "b z y x"],
    mask: Bool[Tensor, "b z y x"] | None = None,
    over: Samples = OWN,
) -> Float[Tensor, ""]:
    """Mean squared difference of the cumulated probabilities (Hou et al. 2016, arXiv 1611.05916, Eq. 7).

    To be off by two classes costs more than to be off by one, which cross-entropy and Dice do not know.

    Args:
        logits: Class scores before the softmax; computed in float32 whatever their type.
        target: Class of each voxel, below k.
        mask: True where a voxel counts; all of them if None. An empty mask gives 0.
        over: Whose voxels the mean is over.

    Returns:
        From 0 to 1: mean over voxels and over the k - 1 borders between neighbouring classes.

    Raises:
        DataError: If the shapes do not belong together, or there is only one class.
    """
    classes = logits.shape[1]
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise DataError(f"target must have the grid of logits {tuple(logits.shape)}, not {tuple(target.shape)}", "grid")
    if mask is not None and mask.shape != target.shape:
        raise DataError(f"mask must have the shape {tuple(target.shape)} of target, not {tuple(mask.shape)}", "grid")
    if classes < 2:
        raise DataError(f"logits must have 2 or more classes, not {classes}", "grid")
    probabilities = logits.float().softmax(dim=1)
    off = torch.zeros(target.shape, device=logits.device)
    below = torch.zeros_like(off)
    for border in range(classes - 1):  # one class at a time: a cumulated copy would be as large as the logits
        below = below + probabilities[:, border]
        off = off + (below - (target <= border).float()).square()
    off = off / (classes - 1)
    counted = torch.ones_like(off, dtype=torch.bool) if mask is None else mask
    total, count = over.total((off * counted).sum(), counted.sum())
    return total / count.clamp(min=1)
