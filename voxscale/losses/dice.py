"""Soft Dice loss on class probabilities."""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from voxscale.errors import DataError


def soft_dice_loss(
    logits: Float[Tensor, "b k z y x"],
    target: UInt8[Tensor, "b z y x"],
    *,
    pooled: bool,
    background: bool,
    eps: float = 1e-5,
    mask: Bool[Tensor, "b z y x"] | None = None,
) -> Float[Tensor, ""]:
    """One minus the mean soft Dice (Milletari et al. 2016, V-Net, section 3, without the squares).

    Per class, Dice is `(2 I + eps) / (P + T + eps)` with I the probability on the
    voxels of the class, P the probability everywhere and T the voxels of the
    class. A class absent from the target therefore scores near 0 unless the
    network gives it almost no probability.

    Args:
        logits: Class scores before the softmax; computed in float32 whatever their type.
        target: Class of each voxel, below k.
        pooled: Sum I, P and T over the batch before dividing, instead of a Dice per sample.
        background: Whether class 0 counts.
        eps: Added to numerator and denominator, in voxels.
        mask: True where a voxel counts; all of them if None.

    Raises:
        DataError: If the shapes do not belong together, or no class is left.
    """
    classes = logits.shape[1]
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise DataError(f"target must have the grid of logits {tuple(logits.shape)}, not {tuple(target.shape)}", "grid")
    if mask is not None and mask.shape != target.shape:
        raise DataError(f"mask must have the shape {tuple(target.shape)} of target, not {tuple(mask.shape)}", "grid")
    if classes < 2 and not background:
        raise DataError("logits must have 2 or more classes when the background does not count, not 1", "grid")
    probabilities = logits.float().softmax(dim=1)
    labels = target.long()
    hits = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    counts = torch.ones_like(hits)
    if mask is not None:
        probabilities = probabilities * mask.unsqueeze(1)
        hits, counts = hits * mask, counts * mask
    overlap = _sum_by_label(hits, labels, classes)
    size = probabilities.sum(dim=(2, 3, 4)) + _sum_by_label(counts, labels, classes)
    if pooled:
        overlap, size = overlap.sum(dim=0), size.sum(dim=0)
    dice = (2 * overlap + eps) / (size + eps)
    return 1 - (dice if background else dice[..., 1:]).mean()


def _sum_by_label(
    values: Float[Tensor, "b z y x"], labels: Int64[Tensor, "b z y x"], classes: int
) -> Float[Tensor, "b k"]:
    """Sum values over the voxels of each class, without a one-hot copy of the labels."""
    # float64: a scatter adds one voxel after another, and float32 loses small addends beyond some million voxels.
    sums = torch.zeros(len(values), classes, dtype=torch.float64, device=values.device)
    return sums.scatter_add(1, labels.flatten(1), values.double().flatten(1)).float()
