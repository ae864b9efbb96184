"""One loss over the outputs of several decoder resolutions."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from voxscale.errors import DataError


def deep_supervision(
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    outputs: Sequence[Float[Tensor, "b k _ _ _"]],
    target: UInt8[Tensor, "b z y x"],
) -> Float[Tensor, "*terms"]:
    """Weigh the losses of all heads 1, 1/2, 1/4 and so on, with the weights made to sum to 1.

    The target of a coarser head is the nearest voxel. For a stride of s that is
    voxel `s * i`, the one that a strided convolution with odd kernel is centred on.

    Args:
        loss_fn: Loss of logits (b, k, z, y, x) and target (b, z, y, x): a scalar, or several in a row.
        outputs: Logits of each head, full resolution first.
        target: Class of each voxel at full resolution.

    Raises:
        DataError: If there is no output.
    """
    if not outputs:
        raise DataError("outputs must hold at least one head, not none", "grid")
    weights = torch.tensor([0.5**level for level in range(len(outputs))], device=outputs[0].device)
    losses = torch.stack([loss_fn(output, _nearest(target, output.shape[2:])) for output in outputs])
    return torch.tensordot((weights / weights.sum()).to(losses.dtype), losses, dims=1)


def _nearest(target: UInt8[Tensor, "b z y x"], size: torch.Size) -> UInt8[Tensor, "b _ _ _"]:
    if target.shape[1:] == size:
        return target
    return F.interpolate(target.unsqueeze(1), size=list(size), mode="nearest").squeeze(1)
