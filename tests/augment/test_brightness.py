import numpy as np
import pytest
import torch

from voxscale.augment.brightness import Brightness, BrightnessConfig, apply, sample
from voxscale.errors import ConfigError
from voxscale.seed import rng


def test_agrees_with_numpy_crop_by_crop() -> None:
    images = torch.from_numpy(rng(0).random((2, 1, 3, 4, 5))).float()
    found = apply(images, Brightness(torch.tensor([0.75, 1.25])))
    for row, factor in enumerate((0.75, 1.25)):
        np.testing.assert_allclose(found[row].numpy(), np.minimum(images[row].numpy() * factor, 1), atol=1e-6)


def test_draws_keep_range_and_probability_and_do_not_depend_on_the_batch() -> None:
    drawn = sample([rng(i) for i in range(1000)], BrightnessConfig()).factor
    assert 0.1 < (drawn != 1).float().mean() < 0.2
    assert 0.75 <= drawn.min() < 0.8 < 1.2 < drawn.max() <= 1.25
    assert sample([rng(7)], BrightnessConfig()).factor[0] == drawn[7]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"probability": 2.0}, "probability"), ({"factor": (0.0, 1.0)}, "factor"), ({"factor": (1.2, 0.8)}, "factor")],
)
def test_bad_config_is_refused_by_name(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^brightness.{name} must be"):
        BrightnessConfig(**wrong)
