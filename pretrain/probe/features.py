"""Feature vectors of single voxels, from all levels of a network."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

DEAD = 1e-6
"""A feature that varies by less than this share of the most varying one counts as constant."""


def hypercolumns(
    maps: Sequence[Float[Tensor, "n _ _ _ _"]],
    crop: Int64[Tensor, " m"],
    place: Int64[Tensor, "m 3"],
    size: Sequence[int],
) -> Float[Tensor, "m c"]:
    """What all levels say of some voxels, read between their cells (Hariharan et al. 2015, "Hypercolumns").

    Args:
        maps: Features of each level, over the same crops.
        crop: Crop of each voxel, rising.
        place: Its index along z, y, x.
        size: Voxels of a crop along z, y, x.

    Returns:
        Features of all levels in a row.
    """
    scale = torch.tensor([2.0 / n for n in size], device=maps[0].device)
    at = ((place.to(scale.device) + 0.5) * scale - 1).flip(1)  # grid_sample wants x, y, z
    rows: list[Tensor] = []
    for number in range(len(maps[0])):
        own = at[crop == number].view(1, 1, 1, -1, 3)
        if own.numel():
            read = [
                F.grid_sample(m[number : number + 1].float(), own, padding_mode="border", align_corners=False)
                for m in maps
            ]
            rows.append(torch.cat([part[0, :, 0, 0] for part in read]).T)
    return torch.cat(rows) if rows else torch.zeros(0, sum(m.shape[1] for m in maps), device=scale.device)


def standardise(
    examples: Float[Tensor, "n c"], others: Float[Tensor, "m c"], widths: Sequence[int]
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "m c"]]:
    """Give every feature the mean 0 and all levels the same weight, whatever their number of features.

    Args:
        examples: Features to learn from, whose means and deviations are taken.
        others: Further features, which are changed alike.
        widths: Features of each level.
    """
    mean, std = examples.mean(dim=0), examples.std(dim=0)
    alive = std > DEAD * std.max()
    weight = torch.cat([torch.full((n,), 1 / math.sqrt(n), device=std.device) for n in widths])
    factor = torch.where(alive, weight / std.clamp(min=1e-30), 0.0)
    return (examples - mean) * factor, (others - mean) * factor
