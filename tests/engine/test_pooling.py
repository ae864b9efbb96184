"""Average pools in bf16 against fp64."""

import torch
from torch import nn

from voxscale.engine.pooling import mend_pools


def test_outputs_and_gradients_are_those_of_fp64_rounded_once():
    pool = nn.AvgPool3d(2)
    assert mend_pools(nn.Sequential(pool, nn.AvgPool2d(2))) == 1
    x = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, want = pool(x), nn.functional.avg_pool3d(exact, 2)
    assert torch.equal(y, want.bfloat16())
    y.sum().backward()
    want.sum().backward()
    assert torch.equal(x.grad, exact.grad.bfloat16())
    single = x.detach().float()
    assert torch.equal(pool(single), nn.functional.avg_pool3d(single, 2))
