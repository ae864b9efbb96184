import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.augment.contrast import Contrast, ContrastConfig, apply, percentiles, sample
from voxscale.errors import ConfigError
from voxscale.seed import rng


def params(*pairs: tuple[float, float], on: bool = True) -> Contrast:
    return Contrast(torch.tensor(pairs), torch.full((len(pairs),), on))


def crops(seed: int, shape: tuple[int, ...] = (2, 1, 8, 9, 10)) -> torch.Tensor:
    return torch.from_numpy(rng(seed, "crops").beta(2, 5, size=shape)).float() * 0.8 + 0.05


def test_agrees_with_numpy_percentiles_and_interpolation() -> None:
    images = crops(0)
    drawn = params((1.0, 98.5), (2.0, 99.9))
    for row, (low, high) in enumerate(drawn.percentiles.tolist()):
        crop = images[row].numpy()
        knots = [crop.min(), *np.percentile(crop, [low, high]), crop.max()]
        expected = np.interp(crop, knots, [0, 0.1, 0.9, 1])
        np.testing.assert_allclose(apply(images, drawn)[row].numpy(), expected, atol=1e-5)


def test_percentiles_of_large_crops_are_close_to_exact() -> None:
    images = crops(1, (1, 1, 96, 96, 96))
    found = percentiles(images, torch.tensor([[0.1, 2.0, 50.0, 98.0, 99.9]]))
    exact = np.percentile(images.numpy(), [0.1, 2.0, 50.0, 98.0, 99.9])
    np.testing.assert_allclose(found[0].numpy(), exact, atol=0.01)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_crop_is_unchanged(level: float) -> None:
    images = torch.full((1, 1, 6, 6, 6), level)
    assert torch.equal(apply(images, params((1.0, 99.0))), images)


def test_mostly_air_crop_is_unchanged_and_finite() -> None:
    images = torch.zeros(1, 1, 40, 40, 40)
    images[..., :4, :4, :4] = 0.7  # 0.1 %, below the least upper tail of 0.1 % to 2 %
    assert torch.equal(apply(images, params((0.1, 99.0))), images)


def test_air_at_the_minimum_stays_0() -> None:
    images = crops(2)
    images[..., :5, :] = 0  # over half of each crop: minimum and lower percentile coincide
    assert (apply(images, params((1.0, 99.0), (1.0, 99.0)))[images == 0] == 0).all()


@given(st.integers(0, 100), st.floats(0.1, 2), st.floats(98, 99.9), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_stays_finite_in_range_and_monotone(seed: int, low: float, high: float, width: float) -> None:
    images = crops(seed, (1, 1, 6, 6, 6)) * width
    mapped = apply(images, params((low, high))).flatten()
    assert torch.isfinite(mapped).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    assert (mapped[images.flatten().argsort()].diff() >= -1e-6).all()


def test_crops_switched_off_are_unchanged() -> None:
    images = crops(3)
    assert torch.equal(apply(images, params((1.0, 99.0), (1.0, 99.0), on=False)), images)
    drawn = sample([rng(i) for i in range(4)], ContrastConfig(probability=0.0))
    assert not drawn.on.any()


def test_draws_are_the_published_ranges_and_independent_of_the_batch() -> None:
    drawn = sample([rng(i) for i in range(500)], ContrastConfig())
    low, high = drawn.percentiles.unbind(1)
    assert drawn.on.all()
    assert 0.1 <= low.min() < 0.2 < 1.9 < low.max() <= 2.0
    assert 98.0 <= high.min() < 98.1 < 99.8 < high.max() <= 99.9
    assert torch.equal(sample([rng(7)], ContrastConfig()).percentiles[0], drawn.percentiles[7])


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"probability": 1.5}, "probability"),
        ({"low": (2.0, 0.1)}, "low"),
        ({"high": (98.0, 101.0)}, "high"),
        ({"high": (40.0, 99.0)}, "high"),
    ],
)
def test_bad_config_is_refused_by_name(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^contrast.{name} must be"):
        ContrastConfig(**wrong)
