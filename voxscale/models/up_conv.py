"""A convolution of enlarged features beside skip features that never builds the enlarged ones.

The first convolution of a decoder step reads `cat([enlarge(y), skip])`. It is
linear, so it is the sum of a convolution of `skip` and one of `enlarge(y)`.
The second reads copies. Along one axis enlarged by s, with a kernel w of k = 2 p + 1,
the output voxel o reads the voxels o + j - p, j = 0 ... k - 1, and voxel i was copied
to s i ... s i + s - 1. So y[i] reaches the outputs o = s i - p + t, t = 0 ... s + k - 2, with the weight

    T[t] = sum of w[j] over the j with 0 <= t + j - 2 p <= s - 1,

which is a transposed convolution of kernel s + k - 1, stride s and padding p; for
k = 3 and s = 2, T = (w2, w1 + w2, w0 + w1, w0). Outputs outside of the grid are cut off, and
nothing comes from outside of y, as from zeros around the enlarged features, so the borders
are equal too. With s = 2 along three axes this takes 8 instead of 27 products per output voxel.
A kernel of one voxel commutes with copying, so there y is convolved and then enlarged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.models import pointwise
from voxscale.models.layers import axes, floats
from voxscale.models.sizes import Dims, Stride

FEWEST_VOXELS = 512
"""Of one sample's features to enlarge; fewer do not repay the sums of weights. The batch does not count, lest the
number of ranks should decide."""
SHORTEST = 3
"""Least voxels along each axis of the features to enlarge, as `voxscale.engine.convolution` says why."""


class _UpConv:
    """What both numbers of dimensions share; the weights and their names are those of the plain convolution."""

    weight: Tensor
    bias: Tensor
    steps: tuple[int, ...]
    turned: bool = False  # see `voxscale.models.turned`

    def forward(
        self, y: Float[Tensor, "b before *size"], skip: Float[Tensor, "b fine *size2"] | None = None
    ) -> Float[Tensor, "b channels *size2"]:
        """Convolve `cat([enlarge(y), skip])`, with nearest-neighbour enlargement, or what is joined already.

        Args:
            y: Features to enlarge, or without `skip` what `join` returns.
            skip: Features on the fine grid.
        """
        if skip is None:
            return super().forward(y)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
        return _Function.apply(y, skip, self.weight, self.bias, self.steps, self.turned)  # pyright: ignore[reportReturnType, reportUnknownVariableType]


class UpConv2d(_UpConv, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
    """For images of two dimensions; see `_UpConv`."""

    def __init__(self, before: int, channels: int, kernel: int, scale: Stride) -> None:
        super().__init__(before, channels, kernel, padding=kernel // 2)
        self.steps = axes(scale, 2)


class UpConv3d(_UpConv, nn.Conv3d):  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
    """For volumes; see `_UpConv`."""

    def __init__(self, before: int, channels: int, kernel: int, scale: Stride) -> None:
        super().__init__(before, channels, kernel, padding=kernel // 2)
        self.steps = axes(scale, 3)


UP_CONV: Mapping[Dims, type[UpConv2d] | type[UpConv3d]] = {2: UpConv2d, 3: UpConv3d}


def pays(y: Float[Tensor, "b c *size"], steps: Sequence[int]) -> bool:
    """Whether the transposed form should be taken: where it was measured to be faster, which is on CPUs.

    Under autocast it is not, as the types of its gradients would not fit.
    """
    if y.device.type != "cpu" or max(steps) == 1 or torch.is_autocast_enabled("cpu"):
        return False
    return y[0, 0].numel() >= FEWEST_VOXELS and min(y.shape[2:]) >= SHORTEST


def join(
    y: Float[Tensor, "b coarse *size"], skip: Float[Tensor, "b fine *size2"], steps: Sequence[int]
) -> Float[Tensor, "b joined *size2"]:
    """Copy each voxel of `y` to a block of `steps`, and put the channels of `skip` behind."""
    wide = y if max(steps) == 1 else F.interpolate(y, scale_factor=floats(steps), mode="nearest")
    return torch.cat([wide, skip], dim=1)


class _Function(torch.autograd.Function):
    """Keeps the parameter itself, not parts of it: under ZeRO-3 they would hold the gathered weights until backward."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, steps: tuple[int, ...], turned: bool
    ) -> Tensor:
        ctx.save_for_backward(y, skip, weight)
        ctx.steps, ctx.turned = steps, turned
        weight = weight.movedim(-1, 1) if turned else weight
        padding = weight.shape[-1] // 2
        coarse, fine = weight.split([y.shape[1], skip.shape[1]], dim=1)
        if padding == 0:
            out = F.interpolate(_convolve(y, coarse, None), scale_factor=floats(steps), mode="nearest")
        else:
            transposed = F.conv_transpose3d if y.ndim == 5 else F.conv_transpose2d
            out = transposed(y, transposed_weight(coarse, steps), stride=steps, padding=padding)  # pyright: ignore[reportArgumentType]
        return out.add_(_convolve(skip, fine, bias))  # which a recomputation may have kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        y, skip, weight = ctx.saved_tensors
        weight = weight.movedim(-1, 1) if ctx.turned else weight
        need_y, need_skip, need_weight, need_bias = ctx.needs_input_grad[:4]
        coarse, fine = weight.split([y.shape[1], skip.shape[1]], dim=1)
        of_y, of_coarse = _coarse_gradients(gradient, y, coarse, ctx.steps, (need_y, need_weight))
        of_skip, of_fine, of_bias = _gradients(gradient, skip, fine, (need_skip, need_weight, need_bias))
        if of_coarse is None or of_fine is None:
            return of_y, of_skip, None, of_bias, None, None
        of_weight = torch.cat([of_coarse, of_fine], dim=1)
        of_weight = of_weight.movedim(1, -1).contiguous() if ctx.turned else of_weight
        return of_y, of_skip, of_weight, of_bias, None, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = weight.shape[-1] // 2
    if padding == 0 and pointwise.pays(x):
        return pointwise.multiply(x, weight, bias)
    return (F.conv3d if x.ndim == 5 else F.conv2d)(x, weight, bias, padding=padding)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias of `_convolve`."""
    padding = weight.shape[-1] // 2
    if padding == 0 and pointwise.pays(x):
        return pointwise.gradients(gradient, x, weight, wanted)
    return _backward(gradient, x, weight, None, padding, wanted)


def _coarse_gradients(
    gradient: Tensor, y: Tensor, weight: Tensor, steps: tuple[int, ...], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the features to enlarge and of their part of the weight."""
    kernel = weight.shape[-1]
    if kernel == 1:
        of_y, of_weight, _ = _gradients(block_sums(gradient, steps), y, weight, (*wanted, False))
        return of_y, of_weight
    summed = transposed_weight(weight, steps)
    of_y, of_summed, _ = _backward(gradient, y, summed, steps, kernel // 2, (*wanted, False))
    return of_y, None if of_summed is None else folded_gradient(of_summed, kernel, steps)


def block_sums(fine: Float[Tensor, "b c *size"], steps: Sequence[int]) -> Float[Tensor, "b c *size2"]:
    """Sums over blocks of `steps` voxels, in float32 at least: what copies of a voxel have got together."""
    sums = fine.to(torch.promote_types(fine.dtype, torch.float32))
    for axis, step in enumerate(steps, start=2):
        if step > 1:
            first, *others = (sums[(slice(None),) * axis + (slice(n, None, step),)] for n in range(step))
            sums = first + others[0]
            for each in others[1:]:
                sums += each
    return sums.to(fine.dtype)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    steps: tuple[int, ...] | None,
    padding: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias of a convolution, which is transposed if it has `steps`."""
    ones = [1] * (x.ndim - 2)
    return torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        [weight.shape[0]],
        steps or ones,
        [padding] * len(ones),
        ones,
        steps is not None,
        [0] * len(ones),
        1,
        wanted,
    )


def transposed_weight(
    weight: Float[Tensor, "out before *kernel"], steps: Sequence[int]
) -> Float[Tensor, "before out *kernel2"]:
    """The weight with which a transposed convolution of y equals a convolution of enlarged y.

    Sums are taken in float32 at least, because a bf16 weight of one is a rounded sum
    of up to eight of the other.

    Args:
        weight: Of a kernel of 1 or 3 along each axis.
        steps: Enlargement along each axis.
    """
    matrix = _matrix(weight, weight.shape[-1], steps)
    summed = weight.transpose(0, 1).flatten(2).to(matrix.dtype) @ matrix.T
    sizes = [step + weight.shape[-1] - 1 for step in steps]
    return summed.unflatten(2, sizes).to(weight.dtype)


def folded_gradient(
    gradient: Float[Tensor, "before out *kernel2"], kernel: int, steps: Sequence[int]
) -> Float[Tensor, "out before *kernel"]:
    """The gradient of a weight from the gradient of its `transposed_weight`."""
    matrix = _matrix(gradient, kernel, steps)
    folded = (gradient.flatten(2).to(matrix.dtype) @ matrix).transpose(0, 1)
    return folded.unflatten(2, [kernel] * len(steps)).to(gradient.dtype)


def _matrix(like: Tensor, kernel: int, steps: Sequence[int]) -> Tensor:
    """Which weights each new weight sums up, as ones in a matrix (new, old)."""
    matrix = torch.ones(1, 1, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    for step in steps:
        rows = [[float(0 <= t + j - kernel + 1 < step) for j in range(kernel)] for t in range(step + kernel - 1)]
        matrix = torch.kron(matrix, torch.tensor(rows, dtype=matrix.dtype, device=like.device))
    return matrix
