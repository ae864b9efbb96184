"""Painting of a grid of blocks and blending of two crops in one pass on GPUs."""
# ruff: noqa: N803  # arguments that are known when a kernel is compiled are written in capitals

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
"""Voxels of a program."""


@triton.jit
def _paint_and_fuse(
    background, foreground, table, z_place, y_place, x_place, label, fused, cells, z_size, y_size, x_size, levels,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Look up each voxel's class by its cell, and blend."""
    sample = tl.program_id(1)
    voxels = z_size * y_size * x_size
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < voxels
    z, y, x = at // (y_size * x_size), at // x_size % y_size, at % x_size
    cell = tl.load(z_place + sample * z_size + z, mask=inside, other=0)
    cell += tl.load(y_place + sample * y_size + y, mask=inside, other=0)
    cell += tl.load(x_place + sample * x_size + x, mask=inside, other=0)
    kind = tl.load(table + sample * cells + cell, mask=inside, other=0)
    here = sample.to(tl.int64) * voxels + at
    tl.store(label + here, kind, mask=inside)
    start = tl.load(background + here, mask=inside, other=0.0).to(tl.float32)
    end = tl.load(foreground + here, mask=inside, other=0.0).to(tl.float32)
    share = kind.to(tl.float32) / levels
    value = tl.where(share < 0.5, start + share * (end - start), end - (end - start) * (1.0 - share))
    tl.store(fused + here, value.to(fused.dtype.element_ty), mask=inside)


def paint_and_fuse(
    background: Tensor, foreground: Tensor, table: Tensor, places: tuple[Tensor, Tensor, Tensor], levels: int
) -> tuple[Tensor, Tensor]:
    """Label and blended image of each pair.

    Args:
        background: (b, 1, z, y, x) crops.
        foreground: Those to blend in.
        table: (b, cells) uint8 class of each cell.
        places: (b, z), (b, y) and (b, x) int32: what each voxel adds to its cell's number along an axis.
        levels: K.
    """
    background, foreground = background.contiguous(), foreground.contiguous()
    label = torch.empty(background.shape, dtype=torch.uint8, device=background.device)
    fused = torch.empty_like(background)
    z, y, x = background.shape[2:]
    grid = (triton.cdiv(z * y * x, _BLOCK), len(background))
    _paint_and_fuse[grid](
        background, foreground, table, *places, label, fused, table.shape[1], z, y, x, levels, BLOCK=_BLOCK
    )
    return label, fused
