"""Batch norms with bf16 weights and fp32 statistics, against fp64."""

import pytest
import torch
from torch import nn

from voxscale.engine.norm import mend_batch_norms

NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def pair(dims: int, **options) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A norm as DeepSpeed leaves it, mended; the same in fp64; images."""
    generator = torch.Generator().manual_seed(dims)
    exact = NORMS[dims](6, **options).double()
    with torch.no_grad():
        for p in exact.parameters():
            p.copy_(torch.randn(p.shape, generator=generator).bfloat16())
    ours = NORMS[dims](6, **options)
    ours.load_state_dict(exact.state_dict())
    for p in ours.parameters():
        p.data = p.data.bfloat16()
    assert mend_batch_norms(ours) == 1
    x = torch.randn(4, 6, *(3, 5, 4)[: dims - 2], generator=generator) * 3 + 1
    return ours, exact, x.bfloat16()


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dims", [3, 4, 5])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_outputs_gradients_and_statistics_are_those_of_fp64(dims, layout, momentum):
    ours, exact, x = pair(dims, momentum=momentum)
    if layout == "last" and dims > 3:
        x = x.to(memory_format=torch.channels_last_3d if dims == 5 else torch.channels_last)
    inputs = [x.detach().requires_grad_(), x.double().requires_grad_()]
    for _ in range(3):
        outputs = [norm(given) for norm, given in zip((ours, exact), inputs, strict=True)]
        assert outputs[0].dtype == torch.bfloat16
        torch.testing.assert_close(outputs[0].double(), outputs[1], rtol=2**-8, atol=2**-8)
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    for y in outputs:
        y.backward(slope.to(y))
    for a, b in zip([inputs[0], *ours.parameters()], [inputs[1], *exact.parameters()], strict=True):
        assert a.grad.dtype == torch.bfloat16
        assert float((a.grad.double() - b.grad).norm() / b.grad.norm()) < 2**-7
    for name, buffer in ours.named_buffers():
        assert buffer.dtype == (torch.int64 if name == "num_batches_tracked" else torch.float32)
        torch.testing.assert_close(buffer.double(), dict(exact.named_buffers())[name].double(), rtol=1e-5, atol=1e-6)
    held = [buffer.clone() for buffer in ours.buffers()]
    torch.testing.assert_close(ours.eval()(x).double(), exact.eval()(x.double()), rtol=2**-7, atol=2**-7)
    assert all(torch.equal(a, b) for a, b in zip(held, ours.buffers(), strict=True))


def test_other_norms_keep_their_bits():
    for norm in (nn.BatchNorm3d(6), nn.BatchNorm3d(6).bfloat16(), nn.BatchNorm3d(6, affine=False)):
        plain = NORMS[5](6, affine=norm.affine).to(norm.running_mean.dtype)
        plain.load_state_dict(norm.state_dict())
        assert mend_batch_norms(norm) == 1
        assert norm.state_dict().keys() == plain.state_dict().keys()
        x = torch.randn(2, 6, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(norm.running_mean.dtype)
        assert torch.equal(norm(x), plain(x))
        assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), plain.buffers(), strict=True))
    assert mend_batch_norms(nn.BatchNorm3d(6, track_running_stats=False)) == 0
