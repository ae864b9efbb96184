"""The compiled maps of grey values: piecewise-linear with the bits of torch, powers close to the true ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.augment import contrast, gamma
from voxscale.augment.contrast import Contrast
from voxscale.augment.gamma import Gamma
from voxscale.kernel import greys
from voxscale.kernel.greys import Parts, change_greys, load
from voxscale.seed import torch_generator

pytestmark = pytest.mark.skipif(load() is None, reason="needs g++")


@given(st.integers(0, 100), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_bits_are_those_of_torch(seed: int, side: int) -> None:
    generator = torch_generator(seed, "contrast")
    images = torch.rand(3, 1, 2, 3, side, generator=generator)
    knots = torch.rand(3, 4, generator=generator).sort(dim=1).values
    start, width = knots[:, :-1], (knots[:, 1:] - knots[:, :-1]).clamp(min=1e-6)
    height = torch.tensor([0.1, 0.8, 0.1])
    want = torch.zeros_like(images)
    for part in range(3):
        first, wide = (one[:, part].view(-1, 1, 1, 1, 1) for one in (start, width))
        want += height[part] * ((images - first) / wide).clamp(0, 1)
    found = change_greys(images, Parts(start, width, height, (True,) * len(images)))
    assert found is not None
    assert torch.equal(found, want)


def test_what_is_no_number_stays_none_wherever_it_stands() -> None:
    images = torch.full((1, 1, 1, 1, 19), torch.nan)
    images[..., 3], images[..., 17] = torch.inf, -torch.inf
    start, width, height = (
        torch.tensor([[0.0, 0.1, 0.9]]),
        torch.tensor([[0.1, 0.8, 0.1]]),
        torch.tensor([0.1, 0.8, 0.1]),
    )
    found = change_greys(images, Parts(start, width, height, (True,) * len(images)))
    assert found is not None
    rest = [n for n in range(19) if n not in (3, 17)]
    assert found[..., rest].isnan().all()
    assert found[..., 3].item() == pytest.approx(1.0)
    assert found[..., 17].item() == 0.0


def test_contrast_is_the_same_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(3, 1, 40, 40, 41, generator=torch_generator(0, "images"))
    params = Contrast(torch.tensor([[1.0, 99.0], [0.5, 98.5], [2.0, 99.9]]), torch.tensor([True, False, True]))
    found = contrast.apply(images, params)
    assert torch.equal(found[1], images[1])
    exponents = torch.tensor([0.8, 1.3, 1.0])
    both = contrast.apply(images, params, exponents)
    assert torch.equal(both, gamma.apply(found, Gamma(exponents)))
    assert torch.equal(both[2], found[2])
    monkeypatch.setattr(greys, "load", lambda: None)
    # What a device does: everything sorted, nothing looked at.
    monkeypatch.setattr(contrast, "_ordered_at", lambda values, _: values.sort(dim=1).values)
    assert torch.equal(found, contrast.apply(images, params))
    torch.testing.assert_close(both, contrast.apply(images, params, exponents), rtol=2**-21, atol=0)


def floats(every: int) -> torch.Tensor:
    """Each so-manieth float from 0 to 1, subnormal ones too, and the ends."""
    bits = np.append(np.arange(0, 0x3F800000, every, dtype=np.uint32), np.uint32(0x3F800000))
    return torch.from_numpy(bits.view(np.float32)).view(1, 1, 1, 1, -1)


@pytest.mark.parametrize(
    ("exponent", "most"),
    [(0.5, 2**-22), (0.7, 1.25 * 2**-23), (1.1, 1.25 * 2**-23), (1.5, 1.25 * 2**-23), (1.9, 2**-22)],
)
def test_powers_are_close_to_those_of_double_precision(exponent: float, most: float) -> None:
    values, told = floats(1009), torch.tensor([exponent])
    found = change_greys(values, exponents=told)
    assert found is not None
    want = values.double() ** float(told)  # as rounded to a float
    normal = want >= 2**-124
    assert ((found - want).abs() / want)[normal].max() < most
    assert (found - want).abs()[~normal].max() <= 2**-124
    assert (found[0, 0, 0, 0, 0], found[0, 0, 0, 0, -1]) == (0, 1)


@pytest.mark.parametrize("exponent", [0.5, 0.77, 1.25, 2.0])
def test_powers_have_the_same_bits_one_by_one_and_wherever_they_stand(exponent: float) -> None:
    values, exponents = floats(20011), torch.tensor([exponent])
    found = change_greys(values, exponents=exponents)
    assert found is not None
    assert torch.equal(found, change_greys(values, exponents=exponents, wide=False))
    assert torch.equal(found[..., 3:], change_greys(values[..., 3:], exponents=exponents))


def test_a_power_of_what_is_no_number_or_below_0_is_none() -> None:
    odd = torch.tensor([torch.nan, -0.5, -2.0, torch.inf, 0.0, 0.25] * 3).view(1, 1, 1, 1, -1)
    for wide in (True, False):
        found = change_greys(odd, exponents=torch.tensor([1.5]), wide=wide)
        assert found is not None
        torch.testing.assert_close(found, odd.pow(1.5), equal_nan=True)


@pytest.mark.parametrize("exponent", [0.4, 2.1])
def test_other_exponents_and_numbers_and_a_missing_kernel_are_left_to_torch(
    exponent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, told = torch.rand(1, 1, 2, 3, 4, generator=torch_generator(0, "images")), torch.tensor([exponent])
    assert change_greys(images, exponents=told) is None
    assert torch.equal(gamma.apply(images, Gamma(told)), images.pow(told.view(-1, 1, 1, 1, 1)))
    assert change_greys(images.double(), exponents=torch.ones(1)) is None
    monkeypatch.setattr(greys, "load", lambda: None)
    assert change_greys(images, exponents=torch.ones(1)) is None
