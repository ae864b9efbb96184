"""Convolutions whose weights lie channels-last in memory although their parameters are contiguous tensors.

ZeRO makes every parameter a contiguous piece of a flat buffer, and its checkpoints are slices of such pieces. A
convolution of channels-last images wants its weight (out, in, *kernel) channels-last too, and copies one
that is not, in every pass, and its gradient back. So the parameter of a turned convolution has the shape
(out, *kernel, in): contiguous, and with its last axis put second it is the weight, channels-last, without a copy.
Files know the shape (out, in, *kernel) alone, see `voxscale.engine.state`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.models.up_conv import UpConv2d, UpConv3d

_KINDS = (nn.Conv2d, nn.Conv3d, UpConv2d, UpConv3d)


def turn(weight: Float[Tensor, "out before *kernel"]) -> Float[Tensor, "out *kernel before"]:
    """A weight as its turned parameter has it; contiguous, a copy unless the weight is channels-last."""
    return weight.movedim(1, -1).contiguous()


def turn_back(parameter: Float[Tensor, "out *kernel before"]) -> Float[Tensor, "out before *kernel"]:
    """The weight of a turned parameter, channels-last, without a copy."""
    return parameter.movedim(-1, 1)


def turned_shape(weight: Sequence[int]) -> tuple[int, ...]:
    """Shape of the turned parameter of a weight of this shape."""
    out, before, *kernel = weight
    return (out, *kernel, before)


def weight_shape(turned: Sequence[int]) -> tuple[int, ...]:
    """Shape of the weight of a turned parameter of this shape."""
    out, *kernel, before = turned
    return (out, before, *kernel)


def turn_convolutions(model: nn.Module, dtype: torch.dtype) -> int:
    """Give convolutions turned parameters, in place; names stay.

    Those of kernels of one voxel or of one input channel lie alike in both layouts and are left alone, as are classes
    derived from torch's, whose use of the weight is not known, and weights that several modules share.

    Args:
        model: The network, of which nothing holds the parameters yet.
        dtype: Number type of the new parameters.

    Returns:
        Number of convolutions that are turned.
    """
    uses: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            uses[id(p)] = uses.get(id(p), 0) + 1
    found = [m for m in model.modules() if _can_be_turned(m) and uses[id(m.weight)] == 1]
    for convolution in found:
        weight = convolution.weight
        turned = turn(weight.detach().to(dtype))  # pyright: ignore[reportArgumentType, reportCallIssue]
        convolution.weight = nn.Parameter(turned, requires_grad=bool(weight.requires_grad))
        convolution.turned = True  # pyright: ignore[reportArgumentType]
        # The attribute shadows the method of this instance only; names of weights and hooks stay as they are.
        convolution._conv_forward = _turned_forward(convolution)  # pyright: ignore[reportArgumentType]
    return len(found)


def turned_names(model: nn.Module) -> frozenset[str]:
    """Names of all turned parameters."""
    return frozenset(f"{name}.weight" for name, module in model.named_modules() if getattr(module, "turned", False))


def _can_be_turned(module: nn.Module) -> bool:
    if type(module) not in _KINDS or "weight" not in module._parameters:  # pyright: ignore[reportPrivateUsage]
        return False
    assert isinstance(module, nn.Conv2d | nn.Conv3d)
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    free = not {"forward", "_conv_forward"} & vars(module).keys() and not getattr(module, "turned", False)
    return plain and free and math.prod(module.kernel_size) > 1 and module.weight.shape[1] > 1


def _turned_forward(convolution: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    assert isinstance(convolution, nn.Conv2d | nn.Conv3d)
    how = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _Function.apply(x, weight, bias, *how)  # pyright: ignore[reportReturnType, reportUnknownVariableType]

    return forward


class _Function(torch.autograd.Function):
    """Keeps the parameter itself, not a view of it: under ZeRO-3 it would hold the gathered weights until backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, dilation, groups)
        convolve: Callable[..., Tensor] = F.conv3d if weight.ndim == 5 else F.conv2d
        return convolve(x, turn_back(weight), bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            x,
            turn_back(weight),
            [weight.shape[0]],
            stride,
            padding,
            dilation,
            False,
            [0] * len(stride),
            groups,
            ctx.needs_input_grad[:3],
        )
        return of_x, None if of_weight is None else turn(of_weight), of_bias, None, None, None, None
