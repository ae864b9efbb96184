"""Voxel-wise cross-entropy."""

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from voxscale.errors import DataError


def cross_entropy(
    logits: Float[Tensor, "b k z y x"],
    target: UInt8[Tensor, "b z y x"],
    mask: Bool[Tensor, "b z y x"] | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-probability of the true class, in nats.

    Args:
        logits: Class scores before the softmax; computed in float32 whatever their type.
        target: Class of each voxel, below k.
        mask: True where a voxel counts; all of them if None. An empty mask gives 0.

    Raises:
        DataError: If the shapes do not belong together.
    """
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise DataError(f"target must have the grid of logits {tuple(logits.shape)}, not {tuple(target.shape)}", "grid")
    # log_softmax and gather, as torch's own cross-entropy has no deterministic form on CUDA.
    losses = -logits.float().log_softmax(dim=1).gather(1, target.long().unsqueeze(1)).squeeze(1)
    if mask is None:
        return losses.mean()
    if mask.shape != target.shape:
        raise DataError(f"mask must have the shape {tuple(target.shape)} of target, not {tuple(mask.shape)}", "grid")
    return (losses * mask).sum() / mask.sum().clamp(min=1)
