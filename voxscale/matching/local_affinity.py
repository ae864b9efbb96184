"""How much the feature maps of two nodes are alike, place by place."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.direction import direction
from voxscale.errors import DataError


def local_affinity(
    source: Float[Tensor, "b n c *grid"],
    target: Float[Tensor, "b m c *grid2"],
    source_mm: Float[Tensor, "b n d *grid"],
    target_mm: Float[Tensor, "b m d *grid2"],
    gamma: int | None = None,
    both_ways: bool = True,
) -> Float[Tensor, "b n m"]:
    """Mean cosine of each vector with the nearest one by place and the nearest one by features.

    LVM-Med, Eq. 2 and 3 (after VICRegL); the mean of the terms is taken, where
    the paper adds them up, so that the result lies in -1..1.

    Args:
        source: Feature maps of the nodes, in 2D or 3D.
        target: Feature maps of the nodes.
        source_mm: Place of each vector in its scan, before the crop was changed, in mm.
        target_mm: Place of each vector.
        gamma: Only so many of the closest pairs count; all of them if None.
        both_ways: Whether target vectors also look for theirs among the source's.

    Raises:
        DataError: If maps and places do not belong together or gamma is out of range.
    """
    for name, maps, places in (("source", source, source_mm), ("target", target, target_mm)):
        if maps.ndim < 4 or maps.shape[:2] != places.shape[:2] or maps.shape[3:] != places.shape[3:]:
            raise DataError(f"{name}_mm must have the grid of {tuple(maps.shape)}, not {tuple(places.shape)}", "grid")
    first, second, here, there = (part.flatten(3).mT.float() for part in (source, target, source_mm, target_mm))
    most = min(first.shape[2], second.shape[2])
    if gamma is not None and not 1 <= gamma <= most:
        raise DataError(f"gamma must be 1 to {most}, not {gamma}", "bad_graph")
    alike = torch.einsum("bnlc,bmkc->bnmlk", direction(first, 3), direction(second, 3))
    ways = [_one_way(alike, first, second, here, there, gamma)]
    if both_ways:
        ways.append(_one_way(alike.mT.transpose(1, 2), second, first, there, here, gamma).mT)
    return torch.stack(ways).mean(dim=0)


def _one_way(
    alike: Float[Tensor, "b n m l k"],
    first: Float[Tensor, "b n l c"],
    second: Float[Tensor, "b m k c"],
    here: Float[Tensor, "b n l d"],
    there: Float[Tensor, "b m k d"],
    gamma: int | None,
) -> Float[Tensor, "b n m"]:
    """Mean of both terms for the vectors of the first maps."""
    terms: list[Tensor] = []
    for one, other in ((here, there), (first, second)):
        apart, nearest = _closest(one.detach(), other.detach())
        cosine = alike.gather(4, nearest.unsqueeze(4)).squeeze(4)
        if gamma is not None:
            cosine = cosine.gather(3, apart.topk(gamma, dim=3, largest=False).indices)
        terms.append(cosine.mean(dim=3))
    return torch.stack(terms).mean(dim=0)


@torch.no_grad()
def _closest(
    one: Float[Tensor, "b n l c"], other: Float[Tensor, "b m k c"]
) -> tuple[Float[Tensor, "b n m l"], Int64[Tensor, "b n m l"]]:
    """Distance and number of the nearest vector in each other map."""
    (batch, n, long, _), (m, width) = one.shape, other.shape[1:3]
    apart = torch.cdist(one.flatten(1, 2), other.flatten(1, 2), compute_mode="donot_use_mm_for_euclid_dist")
    least = apart.view(batch, n, long, m, width).transpose(2, 3).min(dim=4)
    return least.values, least.indices
