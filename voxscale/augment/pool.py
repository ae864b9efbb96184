"""A coarser level of a batch of boxes, made where the stored scan has none."""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from voxscale.batch import Batch


@torch.no_grad()
def coarser(batch: Batch, factor: Sequence[int]) -> Batch:
    """Mean of blocks of voxels, as in a store's pyramid (`voxscale.pyramid`); matrices still map to the same places.

    Args:
        batch: Boxes, padded at their far ends; the padding does not enter the means.
        factor: Voxels of a block along z, y, x.
    """
    if all(f == 1 for f in factor):
        return batch
    by = torch.tensor(factor, device=batch.matrix.device, dtype=batch.matrix.dtype)
    kernel = tuple(factor)
    voxels = batch.voxels.float()
    weight = torch.ones((), device=voxels.device)
    for axis, (n, block) in enumerate(zip(voxels.shape[2:], kernel, strict=True)):
        index = torch.arange(n, device=voxels.device)
        real = (index < batch.sizes[:, axis, None]).float()
        shape = [len(voxels), 1, *[-1 if other == axis else 1 for other in range(3)]]
        voxels = voxels * real.view(shape)
        weight = weight * F.pad(real, (0, -n % block)).unflatten(1, (-1, block)).mean(dim=2).view(shape)
    matrix = batch.matrix / by[:, None]
    matrix[:, :, 3] = (batch.matrix[:, :, 3] + 0.5) / by - 0.5
    removed = batch.removed
    return dataclasses.replace(
        batch,
        voxels=_pool(voxels, kernel) / weight.clamp(min=1e-6),
        label=None,
        sizes=torch.ceil(batch.sizes / by),
        matrix=matrix,
        removed=None if removed is None else (_pool(removed.float(), kernel) > 0).to(torch.uint8),
    )


def _pool(voxels: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Mean of blocks; the last ones may be cut, as if by zeros, which `weight` undoes."""
    short = [-n % k for n, k in zip(voxels.shape[2:], kernel, strict=True)]
    padding = [n for axis in reversed(short) for n in (0, axis)]
    return F.avg_pool3d(F.pad(voxels, padding), list(kernel))
