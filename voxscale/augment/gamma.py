"""Random gamma curve: `x ** exponent` on 0..1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.config import config, require
from voxscale.kernel.greys import change_greys


@config
class GammaConfig:
    """How strongly mid-greys may be darkened or brightened.

    Attributes:
        probability: Of changing a crop at all.
        exponent: Least and greatest exponent, drawn uniformly.
    """

    probability: float = 1.0
    exponent: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(0 <= self.probability <= 1, "gamma.probability", "0 to 1", self.probability)
        low, high = self.exponent
        require(0 < low <= high, "gamma.exponent", "two rising exponents above 0", self.exponent)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Drawn parameters.

    Attributes:
        exponent: (n,), 1 where a crop stays as it is.
    """

    exponent: Float[Tensor, " n"]


def sample(rngs: Sequence[np.random.Generator], config: GammaConfig) -> Gamma:
    """Draw the exponent of each crop from its own generator."""
    drawn = [(rng.random() < config.probability, rng.uniform(*config.exponent)) for rng in rngs]
    return Gamma(torch.tensor([exponent if on else 1.0 for on, exponent in drawn], dtype=torch.float32))


def apply(images: Float[Tensor, "n 1 z y x"], params: Gamma) -> Float[Tensor, "n 1 z y x"]:
    """Raise crops of values in 0..1 to their exponents.

    On CPUs by the compiled kernel, see `voxscale.kernel.greys.change_greys`: its last bits are not those of torch.
    """
    done = change_greys(images, exponents=params.exponent)
    if done is not None:
        return done
    return images.pow(params.exponent.to(images).view(-1, 1, 1, 1, 1))
