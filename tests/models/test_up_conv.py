"""Convolutions of enlarged beside skip features: the transposed form is the plain one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from voxscale.models import up_conv
from voxscale.models.build import build
from voxscale.models.layers import conv_flops
from voxscale.models.stunet import ResidualBlock, STUNetConfig
from voxscale.models.up_conv import UP_CONV, pays, transposed_weight
from voxscale.seed import torch_generator

SCALES = [(2, 2, 2), (1, 2, 2), (3, 1, 2), (1, 1, 3)]
WEIGHTS = ("weight", "bias")


def written_out(y: Tensor, skip: Tensor, scale: tuple[int, ...], conv: nn.Module) -> Tensor:
    for axis, factor in enumerate(scale[-(y.ndim - 2) :], start=2):
        y = y.repeat_interleave(factor, dim=axis)
    function = F.conv3d if y.ndim == 5 else F.conv2d
    return function(torch.cat([y, skip], 1), conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)


def problem(
    dims: int, kernel: int, scale: tuple[int, int, int], dtype: torch.dtype
) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch_generator(0)
    coarse = (3, 4, 5)[-dims:]
    fine = [n * s for n, s in zip(coarse, scale[-dims:], strict=True)]
    conv = UP_CONV[dims](3 + 2, 4, kernel, scale).to(dtype)
    for p in conv.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(2, 3, *coarse, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return conv, y, torch.randn(2, 2, *fine, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def run(function, conv: nn.Module, y: Tensor, skip: Tensor) -> list[Tensor]:
    """Output and gradients of both inputs, weight and bias."""
    tensors = [y, skip, conv.weight, conv.bias]
    for tensor in tensors:
        tensor.grad = None
    out = function(y, skip)
    out.backward(torch.randn(out.shape, generator=torch_generator(1), dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in tensors)]


def test_weight_along_one_axis_by_hand() -> None:
    weight = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3).repeat(1, 1, 3, 1)
    found = transposed_weight(weight, (1, 2))
    assert found.shape == (1, 1, 3, 4)
    assert found[0, 0, 1].tolist() == [100.0, 110.0, 11.0, 1.0]
    assert transposed_weight(weight[..., 1:2, 1:2], (2, 3))[0, 0].tolist() == [[10.0] * 3] * 2


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("last", [False, True])
def test_values_and_gradients_are_those_of_the_plain_convolution(
    dims: int, kernel: int, scale: tuple, last: bool
) -> None:
    conv, y, skip = problem(dims, kernel, scale, torch.float64)
    want = run(lambda a, b: written_out(a, b, scale, conv), conv, y, skip)
    if last:
        form = torch.channels_last_3d if dims == 3 else torch.channels_last
        y, skip = (t.detach().contiguous(memory_format=form).requires_grad_() for t in (y, skip))
    for a, b in zip(run(conv, conv, y, skip), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_bf16_gradients_at_the_shortest_axis_are_those_of_fp64(scale: tuple) -> None:
    conv, y, skip = problem(3, 3, scale, torch.bfloat16)
    soiled = [torch.full((1 << power,), torch.nan) for power in range(6, 20)]  # memory that is never written shows
    del soiled
    got = run(conv, conv, y, skip)
    wide = nn.Module()
    wide.weight, wide.bias, wide.kernel_size = (*(conv.get_parameter(n).detach().double() for n in WEIGHTS), (3,))
    for p in (wide.weight, wide.bias):
        p.requires_grad_()
    want = run(
        lambda a, b: written_out(a, b, scale, wide), wide,
        y.detach().double().requires_grad_(), skip.detach().double().requires_grad_(),
    )  # fmt: skip
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= 0.01 * b.norm()


def test_only_wanted_gradients_are_computed() -> None:
    conv, y, skip = problem(3, 3, (2, 2, 2), torch.float64)
    conv.requires_grad_(False)
    conv(y, skip.detach()).sum().backward()
    assert y.grad is not None
    assert conv.weight.grad is None
    conv.bias.requires_grad_()
    conv(y.detach(), skip.detach()).sum().backward()
    assert conv.bias.grad.tolist() == pytest.approx([2.0 * 6 * 8 * 10] * 4)


def test_transposed_form_is_taken_for_many_voxels_on_cpus_alone() -> None:
    many, steps = torch.zeros(1, 2, 8, 8, 8), (2, 2, 2)
    assert pays(many, steps)
    assert not pays(many, (1, 1, 1))
    assert not pays(many[:, :, 1:], steps)
    assert not pays(torch.zeros(9, 2, 4, 8, 8), steps)
    assert not pays(torch.zeros(1, 2, 2, 64, 64), steps)
    assert not pays(many.to("meta"), steps)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(many, steps)


@pytest.mark.parametrize("stages", [(), (0, 1, 2), (2, 1, 0)])  # the last keeps what convolutions return
def test_stunet_is_the_same_network_in_both_forms(monkeypatch: pytest.MonkeyPatch, stages: tuple[int, ...]) -> None:
    strides = ((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    model = build(
        STUNetConfig(
            width=2,
            depth=2,
            classes=3,
            heads=2,
            strides=strides,
            checkpoint_stages=stages,
            keep_convolutions=stages[:1] == (2,),
        )
    ).double()
    x = torch.randn(2, 1, 8, 16, 16, generator=torch_generator(0), dtype=torch.float64)
    found = []
    for least in (1, 1 << 40):
        monkeypatch.setattr(up_conv, "FEWEST_VOXELS", least)
        model.zero_grad()
        outputs = model(x)
        sum(y.square().mean() for y in outputs).backward()
        grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        found.append((outputs, grads))
    (ours, grads), (plain, want) = found
    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))  # there are two forms
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
    assert grads.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(grads[key], want[key], rtol=1e-6, atol=1e-10)


def test_operations_of_the_transposed_form() -> None:
    block = ResidualBlock(2 * 3, 3, project=True, dims=3, scale=(2, 2, 2))
    y, skip = torch.zeros(1, 3, 8, 8, 8), torch.zeros(1, 3, 16, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(y, skip)
    fine, coarse = 16**3, 8**3
    # Of the skip features, and the second convolution; then of those to enlarge.
    want = 2 * conv_flops(3, 3, 27, fine) + conv_flops(3, 3, 1, fine)
    want += conv_flops(3, 3, 64, coarse) + conv_flops(3, 3, 1, coarse)
    want += 2 * 9 * 27 * 64  # sums of weights
    assert counter.get_total_flops() == want


def test_block_compiles_in_one_graph() -> None:
    block = ResidualBlock(2 * 2, 2, project=True, dims=3, scale=(2, 2, 2)).double()
    y = torch.randn(1, 2, 8, 8, 8, generator=torch_generator(0), dtype=torch.float64).requires_grad_()
    skip = torch.randn(1, 2, 16, 16, 16, generator=torch_generator(1), dtype=torch.float64)
    found = []
    for function in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        block.zero_grad()
        y.grad = None
        out = function(y, skip)
        (out**3).sum().backward()
        found.append([out, y.grad, *(p.grad for p in block.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
