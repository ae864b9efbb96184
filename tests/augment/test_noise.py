import pytest
import torch

from voxscale.augment.noise import Noise, NoiseConfig, apply, sample
from voxscale.errors import ConfigError
from voxscale.seed import rng


def test_noise_has_the_drawn_deviation_and_no_pattern() -> None:
    images = torch.full((2, 1, 32, 32, 32), 0.5)
    added = apply(images, Noise((0.05, 0.02), (1, 2))) - images
    assert added.mean(dim=(1, 2, 3, 4)).abs().max() < 1e-3
    assert added.std(dim=(1, 2, 3, 4)).tolist() == pytest.approx([0.05, 0.02], rel=0.02)
    neighbours = torch.corrcoef(torch.stack([added[0, 0, :, :, 1:].flatten(), added[0, 0, :, :, :-1].flatten()]))
    assert abs(neighbours[0, 1]) < 0.03
    between = torch.corrcoef(added.flatten(1))
    assert abs(between[0, 1]) < 0.03


def test_values_stay_in_range_and_input_is_kept() -> None:
    images = torch.tensor([0.0, 1.0]).repeat(1, 1, 8, 8, 4)
    before = images.clone()
    noisy = apply(images, Noise((0.5,), (3,)))
    assert torch.equal(images, before)
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert not torch.equal(noisy, before)


def test_crops_without_noise_are_unchanged() -> None:
    images = torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply(images, Noise((0.0,), (3,))), images)


def test_result_does_not_depend_on_the_batch() -> None:
    images = torch.full((3, 1, 4, 5, 6), 0.5)
    config = NoiseConfig(probability=1.0)
    together = apply(images, sample([rng(i) for i in range(3)], config))
    for row in range(3):
        assert torch.equal(apply(images[:1], sample([rng(row)], config))[0], together[row])


def test_draws_keep_range_and_probability() -> None:
    drawn = sample([rng(i) for i in range(1000)], NoiseConfig(probability=0.5, sigma=(0.02, 0.1)))
    on = [sigma for sigma in drawn.sigma if sigma > 0]
    assert 0.45 < len(on) / 1000 < 0.55
    assert 0.02 <= min(on) < 0.022 < 0.098 < max(on) <= 0.1
    assert len(set(drawn.seeds)) == 1000


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"probability": 2.0}, "probability"), ({"sigma": (-0.1, 0.1)}, "sigma"), ({"sigma": (0.2, 0.1)}, "sigma")],
)
def test_bad_config_is_refused_by_name(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^noise.{name} must be"):
        NoiseConfig(**wrong)
