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
    real = torch.ones_like(batch.voxels, dtype=torch.float32)
    for axis in range(3):
        shape = [1] * 5
        shape[2 + axis] = -1
        index = torch.arange(real.shape[2 + axis], device=real.device).view(shape)
        real *= index < batch.sizes[:, axis].view(-1, 1, 1, 1, 1)
    weight = _pool(real, kernel)
    matrix = batch.matrix / by[:, None]
    matrix[:, :, 3] = (batch.matrix[:, :, 3] + 0.5) / by - 0.5
    removed = batch.removed
    return dataclasses.replace(
        batch,
        voxels=_pool(batch.voxels.float() * real, kernel) / weight.clamp(min=1e-6),
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
