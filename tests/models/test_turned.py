"""Turned convolutions compute what plain ones do, and keep their weights channels-last without a copy."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from voxscale.engine.convolution import mend_convolutions
from voxscale.engine.layout import channels_last
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.models.turned import turn, turn_back, turn_convolutions, turned_names, turned_shape, weight_shape
from voxscale.models.up_conv import UpConv3d
from voxscale.seed import torch_generator

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def draw(shape, key="x", dtype=torch.float64):
    return torch.randn(shape, generator=torch_generator(0, key), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(5, 3, 3, 2, 1), (4, 2, 3, 3)])
def test_a_turned_weight_is_contiguous_and_its_view_is_channels_last(shape):
    weight = draw(shape)
    turned = turn(weight)
    assert turned.is_contiguous()
    assert tuple(turned.shape) == turned_shape(shape) == (shape[0], *shape[2:], shape[1])
    assert weight_shape(turned.shape) == shape
    back = turn_back(turned)
    assert torch.equal(back, weight)
    assert back.data_ptr() == turned.data_ptr()
    assert back.stride() == weight.contiguous(memory_format=LAYOUTS[weight.ndim]).stride()
    assert turn(back).data_ptr() == turned.data_ptr()  # nothing is copied on the way of a gradient either


CONVOLUTIONS = {
    "plain": lambda: nn.Conv3d(3, 5, 3, padding=1),
    "strided": lambda: nn.Conv3d(3, 5, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
    "dilated": lambda: nn.Conv3d(2, 4, 3, padding=2, dilation=2),
    "groups": lambda: nn.Conv3d(4, 6, 3, padding=1, groups=2),
    "plane": lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_outputs_and_gradients_are_those_of_the_plain_convolution(kind):
    plain, turned = (nn.Sequential(CONVOLUTIONS[kind]()).double() for _ in range(2))
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(draw(p.shape, name))
    turned.load_state_dict(plain.state_dict())
    assert turn_convolutions(turned, torch.float64) == 1
    x = draw((2, plain[0].in_channels, *[6, 7, 8][: plain[0].weight.ndim - 2]))
    inputs = [channels_last(x).requires_grad_(), channels_last(x).requires_grad_()]
    outputs = [model(one) for model, one in zip((plain, turned), inputs, strict=True)]
    assert torch.equal(*outputs)
    for y in outputs:
        (y * draw(y.shape, "gradient")).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert turned[0].weight.grad.is_contiguous()
    torch.testing.assert_close(turn_back(turned[0].weight.grad), plain[0].weight.grad, rtol=1e-12, atol=1e-12)
    if plain[0].bias is not None:
        torch.testing.assert_close(turned[0].bias.grad, plain[0].bias.grad, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_differences():
    conv = nn.Sequential(nn.Conv3d(2, 2, 2, stride=2)).double()
    assert turn_convolutions(conv, torch.float64) == 1
    x, shape = draw((1, 2, 3, 4, 2)).requires_grad_(), conv[0].weight.shape
    weight, bias = draw(shape, "w").requires_grad_(), draw((2,), "b").requires_grad_()
    assert torch.autograd.gradcheck(conv[0]._conv_forward, (x, weight, bias))


def test_what_lies_alike_in_both_layouts_or_is_not_known_is_left_alone():
    class Standardised(nn.Conv3d):
        def forward(self, x):
            return F.conv3d(x, self.weight - self.weight.mean())

    shared = nn.Conv3d(2, 2, 3)
    other = nn.Conv3d(2, 2, 3)
    other.weight = shared.weight
    shadowed = nn.Conv3d(2, 2, 3)
    shadowed.forward = lambda x: x
    left = [
        nn.Conv3d(4, 2, 1), nn.Conv3d(1, 2, 3), nn.Conv3d(4, 4, 3, groups=4), Standardised(2, 2, 3), shared, other,
        shadowed, nn.Conv3d(2, 2, 3, padding="same"), nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose3d(2, 2, 3), nn.utils.parametrizations.weight_norm(nn.Conv3d(2, 2, 3)), nn.Linear(2, 2),
    ]  # fmt: skip
    model = nn.ModuleList([*left, nn.Conv3d(2, 2, 3)])
    shapes = [tuple(p.shape) for m in left for p in m.parameters()]
    assert turn_convolutions(model, torch.float32) == 1
    assert [tuple(p.shape) for m in left for p in m.parameters()] == shapes
    assert turned_names(model) == {f"{len(left)}.weight"}
    assert turn_convolutions(model, torch.float32) == 0  # not twice


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_with_turned_weights_computes_the_same(dtype):
    one, two = (1, 1, 1), (2, 2, 2)
    config = STUNetConfig(width=4, depth=1, classes=2, heads=2, strides=(two, two, one, one, one))
    plain, turned = build(config), build(config)
    for model in (plain, turned):
        model.initialise(torch_generator(3))
    names = [name for name, _ in turned.named_parameters()]
    plain.to(dtype)
    count = turn_convolutions(turned, dtype)
    turned.to(dtype)
    assert [name for name, _ in turned.named_parameters()] == names
    # all of 3 voxels along each axis but the first of one channel
    assert count == sum(isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3) for m in plain.modules()) - 1
    assert any(isinstance(m, UpConv3d) and m.turned for m in turned.modules())
    for model in (plain, turned):
        mend_convolutions(model)
    x = channels_last(draw((1, 1, 16, 16, 16), dtype=dtype))  # the last decoder step takes the transposed form
    tight = {torch.float64: 1e-12, torch.bfloat16: 0.0}[dtype]
    for a, b in zip(plain(x), turned(x), strict=True):
        torch.testing.assert_close(b, a, rtol=tight, atol=tight)
    for model in (plain, turned):
        torch.stack([y.double().square().mean() for y in model(x)]).sum().backward()
    marked = turned_names(turned)
    for (name, p), q in zip(turned.named_parameters(), plain.parameters(), strict=True):
        gradient = turn_back(p.grad) if name in marked else p.grad
        loose = {torch.float64: 1e-10, torch.bfloat16: 2e-2}[dtype]
        assert (gradient - q.grad).double().norm() <= loose * q.grad.double().norm() + 1e-12, name
