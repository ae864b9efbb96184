"""What several families share: layers for two or three dimensions, first weights, counts of operations."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.models.sizes import Dims

CONV: Mapping[Dims, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM: Mapping[Dims, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}

SLOPE = 0.01
"""Negative slope of LeakyReLU, and the `a` of the He initialisation that goes with it."""

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS = (*_BATCH_NORMS, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm)

_LONGEST_SUM: Mapping[torch.dtype, int] = {torch.float32: 2**15, torch.bfloat16: 2**21}
"""Voxels of a sample up to which torch 2.13's channels-last batch norm on CPUs is exact enough.

It adds up a thread's voxels one by one in fp32, so its error grows with their number: the deviation of normal numbers
is wrong by 2e-6 at 32^3, 3e-5 at 64^3, 2e-4 at 96^3, 6e-4 at 128^3 and 5e-3 at 192^3 (the contiguous one: 5e-8).
"""


@torch.no_grad()
def initialise_layers(model: nn.Module, generator: torch.Generator, *, he: bool = True) -> None:
    """Draw the weights of all common layers; biases become 0 and norms the identity.

    Convolutions are He-normal for LeakyReLU (He et al. 2015, "Delving Deep into
    Rectifiers", section 2.2), linear layers normal with deviation 0.02 cut at two
    deviations (Dosovitskiy et al. 2021 and its successors).

    Args:
        model: A model that is not on the meta device.
        generator: Source of the draws.
        he: Whether convolutions are He-normal; else they are drawn as linear layers are.
    """
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            module.weight.fill_(0.25)
        elif isinstance(module, _CONVOLUTIONS) and he:
            drawn = torch.empty(module.weight.shape, device=generator.device)
            module.weight.copy_(nn.init.kaiming_normal_(drawn, a=SLOPE, generator=generator))
        elif isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            draw_truncated(module.weight, generator)
        elif isinstance(module, _NORMS):
            if isinstance(module, _BATCH_NORMS):
                module.reset_running_stats()
            for name, value in module.named_parameters(recurse=False):
                value.fill_(1.0 if name == "weight" else 0.0)
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and module.bias is not None:
            module.bias.zero_()


@torch.no_grad()
def draw_truncated(weight: torch.Tensor, generator: torch.Generator, std: float = 0.02) -> None:
    """Fill a tensor with normal draws cut at two standard deviations."""
    drawn = torch.empty(weight.shape, device=generator.device)
    weight.copy_(nn.init.trunc_normal_(drawn, std=std, a=-2 * std, b=2 * std, generator=generator))


def instance_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply an instance norm without leaving the channels-last layout on CPUs.

    torch normalises instances by a view that channels-last tensors do not have, so it
    copies them back and forth. Batch norm of a single sample is the same function and has
    a channels-last implementation, which is taken up to `_LONGEST_SUM` voxels.

    Args:
        x: (b, c, ...) features.
        norm: An `InstanceNorm2d` or `InstanceNorm3d` with weight and bias, without running statistics.
    """
    shadowed = "forward" in vars(norm)  # as in `voxscale.models.sparse`
    if shadowed or x.device.type != "cpu" or not _stays_last(x):
        return norm(x)
    assert isinstance(norm, (nn.InstanceNorm2d, nn.InstanceNorm3d))
    if len(x) == 1:  # a split would be copied back together in the backward pass
        return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    parts = [F.batch_norm(one, None, None, norm.weight, norm.bias, True, 0.0, norm.eps) for one in x.split(1)]
    return torch.cat(parts)


def _stays_last(x: Tensor) -> bool:
    """Whether features on a CPU are channels-last, and few enough for that norm."""
    last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    if x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return False
    return math.prod(x.shape[2:]) <= _LONGEST_SUM.get(x.dtype, math.inf)


def norm_act(x: Tensor, norm: nn.Module, shortcut: Tensor | None = None) -> Tensor:
    """Leaky ReLU of `norm(x)` plus `shortcut`; on GPUs in one go where features are channels last.

    Args:
        x: As in `instance_norm`; not to be used after.
        norm: As in `instance_norm`.
        shortcut: Of the shape of `x`; nothing is added if None.
    """
    if x.device.type == "cuda" and "forward" not in vars(norm) and not torch.compiler.is_compiling():
        last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        fused = _fused_norm()
        if fused is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
            return fused(x, norm.weight, norm.bias, norm.eps, SLOPE, shortcut)
    plain = type(norm) in INSTANCE_NORM.values() and "forward" not in vars(norm)
    if plain and x.device.type == "cpu" and not torch.compiler.is_compiling() and not _stays_last(x):
        return _flat_norm_act(x, norm, shortcut)
    y = instance_norm(x, norm)
    if shortcut is not None:
        y = y.add_(shortcut)
    return F.leaky_relu(y, SLOPE, inplace=True)


def _flat_norm_act(x: Tensor, norm: nn.Module, shortcut: Tensor | None) -> Tensor:
    """`norm_act` in the form that torch's norm of instances has inside: channels of all samples as those of one.

    What torch returns is a view of that, and to change a view in place costs autograd three copies of it.
    """
    assert isinstance(norm, (nn.InstanceNorm2d, nn.InstanceNorm3d))
    flat, size = (1, -1, *x.shape[2:]), len(x)
    y = F.batch_norm(x.reshape(flat), None, None, norm.weight.repeat(size), norm.bias.repeat(size), True, 0.0, norm.eps)
    if shortcut is not None:
        y = y.add_(shortcut.reshape(flat))
    return F.leaky_relu(y, SLOPE, inplace=True).view(x.shape)


@functools.cache
def _fused_norm() -> Callable[..., Tensor] | None:
    """The function of `voxscale.models.norm_triton`, where torch came with a compiler for GPUs."""
    try:
        from voxscale.models.norm_triton import norm_add_relu
    except ImportError:
        return None
    return norm_add_relu


def conv_flops(before: int, channels: int, kernel: int, voxels: int) -> int:
    """Operations of a convolution.

    Args:
        before: Input channels (of one group).
        channels: Output channels.
        kernel: Voxels of the kernel.
        voxels: Voxels of the output; of a transposed convolution, of the input.
    """
    return 2 * before * channels * kernel * voxels


def axes(values: Sequence[int], dims: Dims) -> tuple[int, ...]:
    """The last `dims` of (z, y, x)."""
    return tuple(values)[3 - dims :]


def floats(values: Sequence[int]) -> tuple[float, ...]:
    """As floats, as `interpolate` wants scale factors."""
    return tuple(map(float, values))


def volume(values: Sequence[int]) -> int:
    """Product of all numbers."""
    return math.prod(values)
