"""Gradients of convolutions in bf16 whose kernel is longer than the image, against fp64, which oneDNN does not do."""

import itertools

import pytest
import torch
from torch import nn

from voxscale.engine.convolution import is_short, mend_convolutions

CONV = {2: nn.Conv2d, 3: nn.Conv3d}


def soil_memory() -> None:
    """Leave NaN in what the allocator gives out next, so that memory which is never written shows."""
    soiled = [torch.full((1 << power,), torch.nan) for power in range(6, 20)]
    del soiled


def gradients(convolution: nn.Module, x: torch.Tensor, seed: int) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    soil_memory()
    y = convolution(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y))
    return [y.detach(), x.grad, *(p.grad for p in convolution.parameters())]


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [(3, 1, size) for size in itertools.product((1, 2, 4), (2, 3), (1, 2, 3)) if min(size) < 3]
    + [(3, 2, (2, 2, 2)), (3, 2, (4, 2, 1)), (3, 2, (1, 1, 1)), (5, 1, (2, 2, 2)), (5, 1, (4, 4, 4)), (7, 1, (3, 3, 3))]
    + [(3, 2, (1, 1)), (3, 2, (4, 1)), (7, 2, (2, 1)), (7, 2, (5, 1)), (3, 1, (2, 2))],
)
def test_gradients_of_short_axes_are_those_of_fp64(kernel, stride, size, layout):
    dims = len(size)
    model = CONV[dims](32, 16, kernel, stride=stride, padding=kernel // 2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    model = model.bfloat16()
    exact = CONV[dims](32, 16, kernel, stride=stride, padding=kernel // 2).double()
    exact.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    assert mend_convolutions(model) == 1
    x = torch.randn(2, 32, *size, generator=generator).bfloat16()
    if layout == "last":
        x = x.to(memory_format=torch.channels_last_3d if dims == 3 else torch.channels_last)
    found = gradients(model, x, 2)
    for ours, theirs in zip(found, gradients(exact, x.double(), 2), strict=True):
        assert ours.dtype == torch.bfloat16
        error = float((ours.double() - theirs).norm() / theirs.norm())
        assert error < 2**-8, error  # rounding to bf16 once changes no value by more than 2^-9 of it


def test_other_convolutions_keep_their_bits():
    for dtype, size, kernel in ((torch.bfloat16, 3, 3), (torch.float32, 2, 3), (torch.bfloat16, 1, 1)):
        plain = nn.Conv3d(8, 8, kernel, padding=kernel // 2).to(dtype)
        mended = nn.Conv3d(8, 8, kernel, padding=kernel // 2).to(dtype)
        mended.load_state_dict(plain.state_dict())
        assert mend_convolutions(mended) == (kernel > 1)
        assert mended.state_dict().keys() == plain.state_dict().keys()
        x = torch.randn(2, 8, size, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
        for ours, theirs in zip(gradients(mended, x, 3), gradients(plain, x, 3), strict=True):
            assert torch.equal(ours, theirs)


def test_any_axis_counts():
    for size, short in (((2, 9, 9), True), ((9, 9, 2), True), ((3, 3, 3), False), ((9, 2, 9), True)):
        assert is_short(torch.zeros(1, 1, *size, dtype=torch.bfloat16), (3, 3, 3)) is short
    assert not is_short(torch.zeros(1, 1, 2, 9, 9, dtype=torch.bfloat16), (1, 3, 3))
    assert not is_short(torch.zeros(1, 1, 2, 2, 2), (3, 3, 3))
