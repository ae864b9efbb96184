"""Average pools of volumes in bf16 on CPUs, which torch 2.13 does not have."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def mend_pools(model: nn.Module) -> int:
    """Have them compute in fp32 there, in place, as in the shortcuts of nnU-Net's residual encoders.

    Returns:
        Number of pools that are watched.
    """
    pools = [module for module in model.modules() if type(module) is nn.AvgPool3d]
    for pool in pools:
        pool.forward = _mended(pool.forward)  # pyright: ignore[reportAttributeAccessIssue]
    return len(pools)


def _mended(plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return plain(x.float()).to(x.dtype)
        return plain(x)

    return forward
