"""The kernel for GPUs against torch; on CPUs only where triton is there, in its interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from voxscale.seed import torch_generator

pytest.importorskip("triton")
SHAPES = [(2, 24, 5, 6, 7), (1, 96, 4, 5, 6), (2, 16, 20, 21), (1, 192, 3, 4, 5)]


def check(device: str) -> None:
    """Values and gradients of all shapes, with and without a shortcut."""
    from voxscale.models.norm_triton import norm_add_relu

    draws = torch_generator(0)
    for shape in SHAPES:
        layout = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
        for add in (False, True):
            x, shortcut = (torch.randn(shape, generator=draws).mul(2).add(3) for _ in range(2))
            weight, bias = torch.randn(2, shape[1], generator=draws)
            g = torch.randn(shape, generator=draws)
            mine = [t.to(device).contiguous(memory_format=layout).requires_grad_() for t in (x, shortcut)]
            own = [*mine, *(t.clone().to(device).requires_grad_() for t in (weight, bias))]
            y = norm_add_relu(own[0], own[2], own[3], 1e-5, 0.01, own[1] if add else None)
            assert y.stride() == own[0].stride()
            y.backward(g.to(device))
            true = [t.double().requires_grad_() for t in (x, shortcut, weight, bias)]
            z = F.instance_norm(true[0], weight=true[2], bias=true[3], eps=1e-5)
            z = F.leaky_relu(z + true[1] if add else z, 0.01)
            z.backward(g.double())
            pairs = [(y, z), *((a.grad, b.grad) for a, b in zip(own, true, strict=True) if b.grad is not None)]
            for a, b in pairs:
                assert (a.detach().cpu().double() - b.detach()).norm() <= 1e-5 * b.detach().norm(), shape


def test_values_and_gradients_are_those_of_torch() -> None:
    """In a process of its own without a GPU, as triton reads its interpreter's switch when it is imported."""
    if torch.cuda.is_available():
        check("cuda")
        return
    command = "import sys; sys.path.insert(0, 'tests/models'); from test_norm_triton import check; check('cpu')"
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", command], env=env, check=True)
