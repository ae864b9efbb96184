import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor

from voxscale.errors import ConfigError, DataError
from voxscale.inference import gaussian_weights, sliding_window, windows
from voxscale.seed import torch_generator

sizes = st.tuples(*[st.integers(1, 14)] * 3)
patches = st.tuples(*[st.integers(1, 8)] * 3)
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.8])


def place_dependent(x: Tensor) -> Tensor:
    """Logits that differ between patches and within one, so that weights and places matter."""
    ramp = torch.arange(x[0, 0].numel(), dtype=torch.float32).view(x.shape[2:]) / x[0, 0].numel()
    return torch.cat([x, 3 * ramp * x.mean((1, 2, 3, 4), keepdim=True) + x, 2 * x.flip(4) - ramp], dim=1)


@given(size=sizes, patch=patches, overlap=overlaps, batch=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_equals_monai(size: tuple, patch: tuple, overlap: float, batch: int) -> None:
    image = torch.randn(1, 1, *size, generator=torch_generator(sum(size)))
    want = sliding_window_inference(
        image, patch, 1, lambda x: place_dependent(x).softmax(1), overlap=overlap, mode="gaussian", sigma_scale=0.125
    )
    got = sliding_window(place_dependent, image, patch, overlap, batch)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@given(size=sizes, patch=patches, overlap=overlaps)
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one_and_pointwise_networks_leave_no_seams(
    size: tuple, patch: tuple, overlap: float
) -> None:
    def pointwise(x: Tensor) -> Tensor:
        return torch.cat([x, x**2, -x], dim=1)

    image = torch.randn(1, 1, *size, generator=torch_generator(sum(size)))
    got = sliding_window(pointwise, image, patch, overlap)
    assert got.shape == (1, 3, *size)
    torch.testing.assert_close(got.sum(1), torch.ones(1, *size))
    torch.testing.assert_close(got, pointwise(image).softmax(1), rtol=1e-4, atol=1e-6)


def test_constant_network_gives_a_constant() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0]).view(1, 3, 1, 1, 1)
    got = sliding_window(lambda x: logits.expand(len(x), 3, *x.shape[2:]), torch.zeros(1, 1, 20, 13, 9), (8, 8, 4))
    torch.testing.assert_close(got, logits.softmax(1).expand_as(got))


def test_blend_by_hand() -> None:
    # Patches of 4 along x at 0 and 2, sigma 1/2: weights e^(-4.5), e^(-0.5), e^(-0.5), e^(-4.5).
    calls: list[float] = []

    def by_call(x: Tensor) -> Tensor:
        calls.append(len(calls))
        return torch.full((1, 2, 1, 1, 4), -40.0).index_fill(1, torch.tensor(len(calls) - 1), 40.0)

    got = sliding_window(by_call, torch.zeros(1, 1, 1, 1, 6), (1, 1, 4), batch=1)
    inner, outer = np.exp(-0.5), np.exp(-4.5)
    near = inner / (inner + outer)
    assert got[0, 0, 0, 0].tolist() == pytest.approx([1, 1, near, 1 - near, 0, 0])


def test_patches_are_batched_and_padded_with_zeros_on_both_sides() -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x)
        return x.expand(-1, 2, -1, -1, -1)

    got = sliding_window(spy, torch.ones(1, 1, 4, 3, 10), (4, 8, 4), overlap=0.5, batch=3)
    assert [len(x) for x in seen] == [3, 1]  # x starts at 0, 2, 4, 6
    assert torch.equal(seen[0][0, 0, 0, :, 0], torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0]))
    assert got.shape == (1, 2, 4, 3, 10)


def test_several_input_channels_reach_the_network() -> None:
    image = torch.randn(1, 2, 6, 6, 6, generator=torch_generator(0))
    got = sliding_window(lambda x: x, image, (4, 4, 4))
    torch.testing.assert_close(got, image.softmax(1), rtol=1e-4, atol=1e-6)


def test_low_precision_logits_are_blended_in_float32_without_a_graph() -> None:
    scale = torch.ones((), requires_grad=True)
    got = sliding_window(
        lambda x: (scale * x.expand(-1, 2, -1, -1, -1)).bfloat16(), torch.ones(1, 1, 6, 6, 6), (4, 4, 4)
    )
    assert got.dtype == torch.float32
    assert not got.requires_grad


def test_gaussian_weights_by_hand() -> None:
    weights = gaussian_weights((1, 9, 16))
    assert weights.shape == (1, 9, 16)
    assert weights[0, 4, 7].item() == pytest.approx(np.exp(-0.5 * (0.5 / 2) ** 2))
    assert weights[0, 5, 9].item() == pytest.approx(np.exp(-0.5 * (1 / (9 / 8)) ** 2 - 0.5 * (1.5 / 2) ** 2))
    assert torch.equal(weights, weights.flip(0, 1, 2))
    assert weights.min().item() == pytest.approx(1e-3)


@given(size=sizes, patch=patches, overlap=overlaps)
@settings(max_examples=60, deadline=None)
def test_windows_cover_the_image_with_the_overlap(size: tuple, patch: tuple, overlap: float) -> None:
    size = tuple(max(n, p) for n, p in zip(size, patch, strict=True))
    hits = np.zeros(size, dtype=int)
    boxes = windows(size, patch, overlap)
    for box in boxes:
        assert hits[box].shape == patch
        hits[box] += 1
    assert hits.min() >= 1
    assert len({tuple(s.start for s in box) for box in boxes}) == len(boxes)
    for axis, width in enumerate(patch):
        starts = sorted({box[axis].start for box in boxes})
        assert all(b - a <= max(int(width * (1 - overlap)), 1) for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"patch": (4, 0, 4)}, "inference.patch"),
        ({"patch": (4, 4)}, "inference.patch"),
        ({"overlap": 1.0}, "inference.overlap"),
        ({"overlap": -0.1}, "inference.overlap"),
        ({"batch": 0}, "inference.batch"),
    ],
)
def test_bad_options_are_refused(options: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be"):
        sliding_window(lambda x: x, torch.zeros(1, 1, 4, 4, 4), **{"patch": (4, 4, 4), **options})


@pytest.mark.parametrize("shape", [(2, 1, 4, 4, 4), (1, 4, 4, 4)])
def test_anything_but_one_image_is_refused(shape: tuple) -> None:
    with pytest.raises(DataError, match=r"^image must have shape"):
        sliding_window(lambda x: x, torch.zeros(shape), (4, 4, 4))


def test_logits_on_another_grid_are_refused() -> None:
    with pytest.raises(DataError, match=r"^predict must return .*\(1, 'k', 4, 4, 4\), not \(1, 1, 2, 2, 2\)"):
        sliding_window(lambda x: x[..., ::2, ::2, ::2], torch.zeros(1, 1, 4, 4, 4), (4, 4, 4))
