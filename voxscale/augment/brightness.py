"""Random brightness: values times a factor, clipped to 0..1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.config import config, require


@config
class BrightnessConfig:
    """How much darker or brighter a crop may become.

    Attributes:
        probability: Of changing a crop at all.
        factor: Least and greatest factor, drawn uniformly.
    """

    probability: float = 0.15
    factor: tuple[float, float] = (0.75, 1.25)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(0 <= self.probability <= 1, "brightness.probability", "0 to 1", self.probability)
        low, high = self.factor
        require(0 < low <= high, "brightness.factor", "two rising factors above 0", self.factor)


@dataclass(frozen=True, slots=True)
class Brightness:
    """Drawn parameters.

    Attributes:
        factor: (n,), 1 where a crop stays as it is.
    """

    factor: Float[Tensor, " n"]


def sample(rngs: Sequence[np.random.Generator], config: BrightnessConfig) -> Brightness:
    """Draw the factor of each crop from its own generator."""
    drawn = [(rng.random() < config.probability, rng.uniform(*config.factor)) for rng in rngs]
    return Brightness(torch.tensor([factor if on else 1.0 for on, factor in drawn], dtype=torch.float32))


def apply(images: Float[Tensor, "n 1 z y x"], params: Brightness) -> Float[Tensor, "n 1 z y x"]:
    """Multiply crops of values in 0..1 by their factors and clip to 0..1."""
    return (images * params.factor.to(images).view(-1, 1, 1, 1, 1)).clamp(0, 1)
