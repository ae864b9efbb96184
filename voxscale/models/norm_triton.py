# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: N803  # arguments that are known when a kernel is compiled are written in capitals
"""Instance norm, shortcut and leaky ReLU in one go on GPUs, for channels-last features.

torch copies channels-last features to normalise instances, and passes over them once for
each of the three functions. Here the statistics are one pass and everything else is another.
Sums are float32 and taken of differences from each channel's first value, so that a large
mean costs no digits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 4096
"""Values that a program works on at a time."""
_SPLITS = 256
"""Most parts that a sample's voxels are cut into for sums."""


@triton.jit
def _sum_forward(x, parts, voxels, channels, rows, BR: tl.constexpr, BC: tl.constexpr):
    """Sums and sums of squares, over a part of the voxels, of differences from the first voxel."""
    part, sample = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    inside = c < channels
    base = x + sample.to(tl.int64) * voxels * channels
    first = tl.load(base + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BR, BC), tl.float32)
    squares = tl.zeros((BR, BC), tl.float32)
    for start in range(0, rows, BR):
        row = part * rows + start + tl.arange(0, BR)
        here = (row < voxels)[:, None] & inside[None, :]
        value = tl.load(base + row.to(tl.int64)[:, None] * channels + c[None, :], mask=here, other=0.0)
        value = tl.where(here, value.to(tl.float32) - first[None, :], 0.0)
        total += value
        squares += value * value
    out = parts + (sample * tl.num_programs(0) + part) * 2 * channels + c
    tl.store(out, tl.sum(total, 0), mask=inside)
    tl.store(out + channels, tl.sum(squares, 0), mask=inside)


@triton.jit
def _sum_backward(g, x, y, mean, rstd, parts, voxels, channels, rows, slope, BR: tl.constexpr, BC: tl.constexpr):
    """Sums of the gradient before the leaky ReLU, and of its product with the normalised features."""
    part, sample = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    inside = c < channels
    base = sample.to(tl.int64) * voxels * channels
    centre = tl.load(mean + sample * channels + c, mask=inside, other=0.0)
    scale = tl.load(rstd + sample * channels + c, mask=inside, other=0.0)
    total = tl.zeros((BR, BC), tl.float32)
    products = tl.zeros((BR, BC), tl.float32)
    for start in range(0, rows, BR):
        row = part * rows + start + tl.arange(0, BR)
        here = (row < voxels)[:, None] & inside[None, :]
        at = base + row.to(tl.int64)[:, None] * channels + c[None, :]
        gradient = tl.load(g + at, mask=here, other=0.0).to(tl.float32)
        gradient = tl.where(tl.load(y + at, mask=here, other=0.0).to(tl.float32) > 0, gradient, gradient * slope)
        normal = (tl.load(x + at, mask=here, other=0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
        total += gradient
        products += gradient * normal
    out = parts + (sample * tl.num_programs(0) + part) * 2 * channels + c
    tl.store(out, tl.sum(total, 0), mask=inside)
    tl.store(out + channels, tl.sum(products, 0), mask=inside)


@triton.jit
def _add_up(x, parts, one, two, count, voxels, channels, eps, STATISTICS: tl.constexpr, BC: tl.constexpr):
    """Add the parts; of a forward pass, make mean and 1 / deviation of them."""
    sample = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < channels
    first = tl.zeros((BC,), tl.float32)
    second = tl.zeros((BC,), tl.float32)
    for part in range(count):
        at = parts + (sample * count + part) * 2 * channels + c
        first += tl.load(at, mask=inside, other=0.0)
        second += tl.load(at + channels, mask=inside, other=0.0)
    if STATISTICS:
        start = tl.load(x + sample.to(tl.int64) * voxels * channels + c, mask=inside, other=0.0).to(tl.float32)
        first = first / voxels
        second = 1.0 / tl.sqrt(tl.maximum(second / voxels - first * first, 0.0) + eps)
        first += start
    tl.store(one + sample * channels + c, first, mask=inside)
    tl.store(two + sample * channels + c, second, mask=inside)


@triton.jit
def _forward(
    x, shortcut, y, mean, rstd, weight, bias, voxels, channels, slope,
    ADD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Normalise, add, rectify."""
    sample = tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    inside = c < channels
    factor = tl.load(rstd + sample * channels + c, mask=inside, other=0.0)
    factor *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    addend = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    addend -= factor * tl.load(mean + sample * channels + c, mask=inside, other=0.0)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    here = (row < voxels)[:, None] & inside[None, :]
    at = sample.to(tl.int64) * voxels * channels + row.to(tl.int64)[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=here, other=0.0).to(tl.float32) * factor[None, :] + addend[None, :]
    if ADD:
        value += tl.load(shortcut + at, mask=here, other=0.0).to(tl.float32)
    tl.store(y + at, tl.where(value > 0, value, value * slope).to(y.dtype.element_ty), mask=here)


@triton.jit
def _backward(
    g, x, y, mean, rstd, weight, total, products, of_x, of_shortcut, voxels, channels, slope,
    ADD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of features and shortcut."""
    sample = tl.program_id(1)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    inside = c < channels
    own = sample * channels + c
    centre = tl.load(mean + own, mask=inside, other=0.0)
    scale = tl.load(rstd + own, mask=inside, other=0.0)
    factor = scale * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(total + own, mask=inside, other=0.0) / voxels
    second = tl.load(products + own, mask=inside, other=0.0) / voxels
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    here = (row < voxels)[:, None] & inside[None, :]
    at = sample.to(tl.int64) * voxels * channels + row.to(tl.int64)[:, None] * channels + c[None, :]
    gradient = tl.load(g + at, mask=here, other=0.0).to(tl.float32)
    gradient = tl.where(tl.load(y + at, mask=here, other=0.0).to(tl.float32) > 0, gradient, gradient * slope)
    if ADD:
        tl.store(of_shortcut + at, gradient.to(of_shortcut.dtype.element_ty), mask=here)
    normal = (tl.load(x + at, mask=here, other=0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
    value = factor[None, :] * (gradient - first[None, :] - normal * second[None, :])
    tl.store(of_x + at, value.to(of_x.dtype.element_ty), mask=here)


def norm_add_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, shortcut: Tensor | None = None
) -> Tensor:
    """Leaky ReLU of the instance norm of `x` plus `shortcut`.

    Args:
        x: (b, c, ...) features in the channels-last layout, of 2 or 3 dimensions.
        weight: (c,) scale of the norm.
        bias: (c,) shift of the norm.
        eps: Added to the variance.
        slope: For values below 0.
        shortcut: Of the shape of `x`; nothing is added if None.
    """
    return _NormAddRelu.apply(x, weight, bias, eps, slope, shortcut)


def _block(channels: int) -> int:
    """Channels of a tile: few that are not there, and many that lie side by side."""
    if channels % 128 == 0 or 64 < channels < 128:
        return 128
    return 64 if channels % 64 == 0 else min(max(triton.next_power_of_2(channels), 16), 128)


class _NormAddRelu(torch.autograd.Function):
    """Keeps what goes in and what comes out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, shortcut: Tensor | None
    ) -> Tensor:
        plan = _Plan(x)
        layout = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        added = x if shortcut is None else shortcut.contiguous(memory_format=layout)
        mean, rstd = torch.empty(2, x.shape[0], x.shape[1], device=x.device)
        parts = plan.parts(x)
        _sum_forward[plan.sums](x, parts, plan.voxels, plan.channels, plan.rows, BR=plan.br, BC=plan.bc)
        _add_up[plan.adds](
            x, parts, mean, rstd, plan.splits, plan.voxels, plan.channels, eps, STATISTICS=True, BC=plan.bc
        )
        y = torch.empty_like(x)
        _forward[plan.tiles](
            x, added, y, mean, rstd, weight, bias, plan.voxels, plan.channels, slope,
            ADD=shortcut is not None, BR=plan.br, BC=plan.bc,
        )  # fmt: skip
        ctx.save_for_backward(x, y, mean, rstd, weight)
        ctx.slope, ctx.add = slope, shortcut is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, rstd, weight = ctx.saved_tensors
        plan = _Plan(x)
        g = grads[0].contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
        total, products = torch.empty(2, x.shape[0], x.shape[1], device=x.device)
        parts = plan.parts(x)
        _sum_backward[plan.sums](
            g, x, y, mean, rstd, parts, plan.voxels, plan.channels, plan.rows, ctx.slope, BR=plan.br, BC=plan.bc
        )
        _add_up[plan.adds](
            x, parts, total, products, plan.splits, plan.voxels, plan.channels, 0.0, STATISTICS=False, BC=plan.bc
        )
        of_x = torch.empty_like(x)
        of_shortcut = torch.empty_like(x) if ctx.add else None
        _backward[plan.tiles](
            g, x, y, mean, rstd, weight, total, products, of_x, of_x if of_shortcut is None else of_shortcut,
            plan.voxels, plan.channels, ctx.slope, ADD=ctx.add, BR=plan.br, BC=plan.bc,
        )  # fmt: skip
        return of_x, products.sum(0).to(weight.dtype), total.sum(0).to(weight.dtype), None, None, of_shortcut


class _Plan:
    """How the work on features of some shape is cut."""

    def __init__(self, x: Tensor) -> None:
        self.samples, self.channels, self.voxels = x.shape[0], x.shape[1], x[0, 0].numel()
        self.bc = _block(self.channels)
        self.br = _TILE // self.bc
        blocks, across = triton.cdiv(self.voxels, self.br), triton.cdiv(self.channels, self.bc)
        each = triton.cdiv(blocks, min(blocks, max(_SPLITS // across, 1)))
        self.rows = each * self.br
        self.splits = triton.cdiv(self.voxels, self.rows)
        self.sums = (self.splits, self.samples, across)
        self.adds = (self.samples, across)
        self.tiles = (blocks, self.samples, across)

    def parts(self, x: Tensor) -> Tensor:
        """Room for the sums of every part."""
        return torch.empty(self.samples, self.splits, 2, self.channels, device=x.device)
