"""A term against collapse: each sample keeps away from its nearest neighbour."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voxscale.direction import direction
from voxscale.samples import OWN, Samples


def koleo_loss(
    embedded: Float[Tensor, "b p d"], counted: Bool[Tensor, "b p"], eps: float = 1e-4, over: Samples = OWN
) -> Float[Tensor, ""]:
    """Mean of -log of the distance to the nearest other sample in the same slot, of unit vectors.

    The Kozachenko-Leonenko estimate of entropy but for constants (Sablayrolles et al. 2019, Eq. 2).

    Args:
        embedded: Of each sample and slot.
        counted: What counts and is a neighbour. Where there are no two in any slot, the loss is 0.
        eps: Added to distances: samples that are the same cost -log(eps).
        over: Among whose samples neighbours are.
    """
    embedded, counted = over.rows(embedded.float()), over.rows(counted)
    units = direction(embedded, 2).transpose(0, 1)
    apart = counted.T[:, :, None] & counted.T[:, None, :]
    apart = apart & ~torch.eye(len(embedded), dtype=torch.bool, device=apart.device)
    cosines = (units @ units.mT).detach().masked_fill(~apart, -torch.inf)
    nearest = cosines.argmax(dim=2, keepdim=True).expand_as(units)
    # Its own gradient is that of a difference: a square root of 2 - 2 cos would lose what is close in rounding.
    distance = (units - units.gather(1, nearest) + 1e-8).norm(dim=2)
    some = apart.any(dim=2).to(distance)
    return -((distance + eps).log() * some).sum() / some.sum().clamp(min=1)
