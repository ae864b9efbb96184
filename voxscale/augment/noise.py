"""Random noise: independent Gaussian values added to every voxel, clipped to 0..1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.config import config, require
from voxscale.seed import torch_generator


@config
class NoiseConfig:
    """How noisy a crop may become.

    Attributes:
        probability: Of changing a crop at all.
        sigma: Least and greatest standard deviation in network units (the window is 1), drawn uniformly.
    """

    probability: float = 0.1
    sigma: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(0 <= self.probability <= 1, "noise.probability", "0 to 1", self.probability)
        low, high = self.sigma
        require(0 <= low <= high <= 1, "noise.sigma", "two rising deviations from 0 to 1", self.sigma)


@dataclass(frozen=True, slots=True)
class Noise:
    """Drawn parameters.

    Attributes:
        sigma: Standard deviation for each crop, 0 where it stays as it is.
        seeds: Seed of each crop's noise.
    """

    sigma: tuple[float, ...]
    seeds: tuple[int, ...]


def sample(rngs: Sequence[np.random.Generator], config: NoiseConfig) -> Noise:
    """Draw the deviation and the noise's seed of each crop from its own generator."""
    drawn = [(rng.random() < config.probability, rng.uniform(*config.sigma), int(rng.integers(2**62))) for rng in rngs]
    return Noise(tuple(sigma if on else 0.0 for on, sigma, _ in drawn), tuple(seed for *_, seed in drawn))


def apply(images: Float[Tensor, "n 1 z y x"], params: Noise) -> Float[Tensor, "n 1 z y x"]:
    """Add each crop's noise and clip to 0..1.

    Noise is made on the images' device, one generator per crop: it does not
    depend on how crops are batched, but CPU and GPU give different noise.
    """
    noisy = images.clone()
    for row, (sigma, seed) in enumerate(zip(params.sigma, params.seeds, strict=True)):
        if sigma > 0:
            generator = torch_generator(seed, "noise", device=images.device)
            values = torch.randn(images.shape[1:], generator=generator, device=images.device, dtype=images.dtype)
            noisy[row] = torch.add(images[row], values, alpha=sigma).clamp_(0, 1)
    return noisy
