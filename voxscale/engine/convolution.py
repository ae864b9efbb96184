"""Convolutions in bf16 on CPUs whose kernel is longer than the image: oneDNN's weight gradients are wrong there."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def mend_convolutions(model: nn.Module) -> int:
    """Have such convolutions compute in fp32, in place; weights, gradients and outputs stay bf16.

    Where any axis of the input is shorter than the kernel, torch 2.13 on CPUs
    with AVX-512 returns weight gradients with memory that was never written
    (not finite, or finite and of any size) and may write past their end. A
    STU-Net on patches of 64 voxels has such layers: its deepest stage is 2
    voxels long. GPUs, fp32 and longer axes are not concerned.

    Returns:
        Number of convolutions that are watched.
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and max(m.kernel_size) > 1]
    for convolution in convolutions:
        # The attribute shadows the method of this instance only; names of weights and hooks stay as they are.
        convolution._conv_forward = _mended(convolution._conv_forward, convolution.kernel_size)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return len(convolutions)


def is_short(x: Tensor, kernel: tuple[int, ...]) -> bool:
    """Whether the gradient of this convolution would be wrong."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return on_cpu and any(n < k for n, k in zip(x.shape[-len(kernel) :], kernel, strict=True))


def _mended(convolve: Convolve, kernel: tuple[int, ...]) -> Convolve:
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and is_short(x, kernel)):
            return convolve(x, weight, bias)
        return convolve(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    return forward
