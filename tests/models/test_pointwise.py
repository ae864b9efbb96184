"""Convolutions of one voxel by matrix products are torch's convolutions."""

import pytest
import torch
from torch import nn

from voxscale.models import pointwise
from voxscale.models.pointwise import POINTWISE
from voxscale.models.up_conv import UP_CONV, block_sums
from voxscale.seed import torch_generator

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(name, *shape):
    return torch.randn(*shape, generator=torch_generator(0, name), dtype=torch.float32)


def passes(layer, *inputs):
    """Output, and gradients of inputs and parameters."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    y = layer(*inputs)
    (y * draw("weights of the outputs", *y.shape)).sum().backward()
    return [y.detach(), *(x.grad for x in inputs), *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_products_are_the_convolution(one_thread, monkeypatch, dims, bias, last):
    size, layout = (6, 7, 5)[:dims], LAST[dims] if last else torch.contiguous_format
    x = draw("x", 3, 4, *size).to(memory_format=layout)
    layer = POINTWISE[dims](4, 9)
    if not bias:
        layer.bias = None
    plain = (nn.Conv2d if dims == 2 else nn.Conv3d)(4, 9, 1, bias=bias)
    plain.load_state_dict(layer.state_dict())
    taken = []
    whole = pointwise.multiply
    monkeypatch.setattr(pointwise, "multiply", lambda *each: taken.append(1) or whole(*each))
    ours, theirs = passes(layer, x), passes(plain.double(), x.double())
    assert taken
    assert ours[0].is_contiguous(memory_format=layout)
    assert ours[1].is_contiguous(memory_format=layout)
    assert len(ours) == len(theirs) == 3 + bias
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


def test_what_is_not_wanted_is_not_computed(one_thread):
    x, layer = draw("x", 2, 3, 4, 4, 4).to(memory_format=LAST[3]), POINTWISE[3](3, 2)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((2,), 128.0))


@pytest.mark.parametrize(
    "x",
    [
        draw("x", 2, 4, 3, 3, 6)[..., ::2],
        draw("x", 16, 4, 3, 3, 3).to(memory_format=LAST[3]),
        draw("x", 2, 4, 3, 3, 3).to(memory_format=LAST[3]).bfloat16(),
    ],
    ids=["neither layout", "many", "bf16"],
)
def test_other_images_go_torchs_way(one_thread, x):
    assert not pointwise.pays(x)
    layer = POINTWISE[3](4, 2).to(x.dtype)
    plain = nn.Conv3d(4, 2, 1, dtype=x.dtype)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))


def test_so_do_several_threads_and_autocast(one_thread):
    x = draw("x", 2, 4, 3, 3, 3).to(memory_format=LAST[3])
    assert pointwise.pays(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pointwise.pays(x)
    torch.set_num_threads(2)
    assert not pointwise.pays(x)


def test_sums_of_blocks():
    x = draw("x", 2, 3, 4, 6, 5).bfloat16()
    sums = block_sums(x, (2, 3, 1))
    assert sums.dtype == torch.bfloat16
    want = x.float().unflatten(3, (2, 3)).unflatten(2, (2, 2)).sum(dim=(3, 5))
    torch.testing.assert_close(sums.float(), want, rtol=2**-8, atol=0)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_shortcut_of_enlarged_features_is_the_convolution_of_what_is_joined(one_thread, dims, last):
    layout = LAST[dims] if last else torch.contiguous_format
    y = draw("y", 2, 6, *(8,) * dims).to(memory_format=layout)
    skip = draw("skip", 2, 3, *(16,) * dims).to(memory_format=layout)
    layer = UP_CONV[dims](9, 5, 1, (2, 2, 2))
    plain = (nn.Conv2d if dims == 2 else nn.Conv3d)(9, 5, 1)
    plain.load_state_dict(layer.state_dict())

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain = plain.double()

        def forward(self, y, skip):
            return self.plain(torch.cat([nn.functional.interpolate(y, scale_factor=2.0), skip], dim=1))

    for one, other in zip(passes(layer, y, skip), passes(Joined(), y.double(), skip.double()), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-4)
