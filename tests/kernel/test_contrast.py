"""The compiled map of grey values gives the bits of torch's operations one after another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.augment import contrast
from voxscale.augment.contrast import Contrast
from voxscale.kernel.contrast import load, spread_parts
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
    found = spread_parts(images, start, width, height)
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
    found = spread_parts(images, start, width, height)
    assert found is not None
    rest = [n for n in range(19) if n not in (3, 17)]
    assert found[..., rest].isnan().all()
    assert found[..., 3].item() == pytest.approx(1.0)
    assert found[..., 17].item() == 0.0


def test_contrast_is_the_same_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(3, 1, 40, 40, 41, generator=torch_generator(0, "images"))
    params = Contrast(torch.tensor([[1.0, 99.0], [0.5, 98.5], [2.0, 99.9]]), torch.tensor([True, False, True]))
    found = contrast.apply(images, params)
    monkeypatch.setattr(contrast, "spread_parts", lambda *_: None)
    # What a device does: everything sorted, nothing looked at.
    monkeypatch.setattr(contrast, "_ordered_at", lambda values, _: values.sort(dim=1).values)
    assert torch.equal(found, contrast.apply(images, params))
    assert torch.equal(found[1], images[1])
