import numpy as np
import pytest
import torch

from voxscale.augment.gamma import Gamma, GammaConfig, apply, sample
from voxscale.errors import ConfigError
from voxscale.seed import rng


def test_agrees_with_numpy_crop_by_crop() -> None:
    images = torch.from_numpy(rng(0).random((2, 1, 3, 4, 5))).float()
    images[0, 0, 0, 0, 0], images[1, 0, 0, 0, 0] = 0.0, 1.0
    found = apply(images, Gamma(torch.tensor([0.7, 1.5])))
    for row, exponent in enumerate((0.7, 1.5)):
        np.testing.assert_allclose(found[row].numpy(), np.power(images[row].numpy(), exponent), atol=1e-6)


def test_draws_are_the_published_range_and_independent_of_the_batch() -> None:
    drawn = sample([rng(i) for i in range(500)], GammaConfig()).exponent
    assert 0.7 <= drawn.min() < 0.72 < 1.48 < drawn.max() <= 1.5
    assert sample([rng(7)], GammaConfig()).exponent[0] == drawn[7]


def test_probability_leaves_some_crops_alone() -> None:
    drawn = sample([rng(i) for i in range(400)], GammaConfig(probability=0.3)).exponent
    assert 0.6 < (drawn == 1).float().mean() < 0.8


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"probability": -0.1}, "probability"),
        ({"exponent": (0.0, 1.0)}, "exponent"),
        ({"exponent": (2.0, 1.0)}, "exponent"),
    ],
)
def test_bad_config_is_refused_by_name(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^gamma.{name} must be"):
        GammaConfig(**wrong)
