"""Convolutions of one voxel, as matrix products where torch's own are slow.

In fp32 on one thread and for fewer than 16 samples torch 2.13 leaves oneDNN and unfolds the images, whatever their
layout; its output is contiguous, and what follows copies it back. The same function is a product of two matrices,
which keeps the layout.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.models.sizes import Dims

_LEFT_TO_ONEDNN = 16
"""Samples from which torch takes oneDNN."""


def pays(x: Float[Tensor, "b c *size"]) -> bool:
    """Whether the product should be taken; other images, threads and number types are faster torch's way."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.get_num_threads() > 1:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or len(x) >= _LEFT_TO_ONEDNN:
        return False
    return x.is_contiguous() or is_last(x)


def is_last(x: Float[Tensor, "b c *size"]) -> bool:
    """Whether a voxel's channels lie side by side."""
    return x.movedim(1, -1).is_contiguous()


def multiply(
    x: Float[Tensor, "b before *size"], weight: Float[Tensor, "out before *ones"], bias: Tensor | None
) -> Float[Tensor, "b out *size"]:
    """The convolution, in the layout of `x`."""
    matrix = weight.flatten(1)
    if is_last(x):
        return F.linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)
    y = matrix.expand(len(x), -1, -1) @ x.flatten(2)
    if bias is not None:
        y += bias[:, None]
    return y.unflatten(2, x.shape[2:])


def gradients(
    gradient: Float[Tensor, "b out *size"],
    x: Float[Tensor, "b before *size"],
    weight: Float[Tensor, "out before *ones"],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, those that are wanted."""
    matrix = weight.flatten(1)
    of_x, of_weight, of_bias = wanted
    if is_last(x):
        there = gradient.movedim(1, -1)
        rows = there.flatten(0, -2)
        return (
            (there @ matrix).movedim(-1, 1) if of_x else None,
            (rows.T @ x.movedim(1, -1).flatten(0, -2)).view_as(weight) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )
    rows = gradient.flatten(2)
    return (
        (matrix.T.expand(len(x), -1, -1) @ rows).unflatten(2, x.shape[2:]) if of_x else None,
        (rows @ x.flatten(2).mT).sum(dim=0).view_as(weight) if of_weight else None,
        rows.sum(dim=(0, 2)) if of_bias else None,
    )


class _Pointwise:
    """What both numbers of dimensions share."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if pays(x):
            return _Function.apply(x, weight, bias)  # pyright: ignore[reportReturnType, reportUnknownVariableType]
        return super()._conv_forward(x, weight, bias)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]


class Pointwise2d(_Pointwise, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """For images of two dimensions; weights, names and results are those of the plain convolution."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__(before, channels, 1)


class Pointwise3d(_Pointwise, nn.Conv3d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """For volumes; weights, names and results are those of the plain convolution."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__(before, channels, 1)


POINTWISE: Mapping[Dims, type[Pointwise2d] | type[Pointwise3d]] = {2: Pointwise2d, 3: Pointwise3d}


class _Function(torch.autograd.Function):
    """Keeps the parameter itself, not a view of it: under ZeRO-3 it would hold the gathered weights until backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        x, weight = ctx.saved_tensors
        return gradients(gradient, x, weight, ctx.needs_input_grad[:3])
