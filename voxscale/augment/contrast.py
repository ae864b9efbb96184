"""Random contrast: a piecewise-linear map through two random percentiles of the crop.

As in the reference implementation of Volume Fusion's journal version (Wang et
al., IEEE TIP 34, 2025; PyMIC): the values between the percentiles are spread
over 0.1..0.9, the two tails over what is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voxscale.augment import gamma
from voxscale.augment.gamma import Gamma
from voxscale.config import config, require
from voxscale.kernel.greys import Parts, change_greys

FLAT = 1e-3
"""Least distance of the two percentiles (the window is 1) at which a crop has contrast to change."""

TAIL = 0.1
"""Part of 0..1 that each tail is mapped to."""

HEIGHTS = (TAIL, 1 - 2 * TAIL, TAIL)

SAMPLED = 32**3
"""About the most voxels of a crop that its percentiles are taken from, evenly spaced (smaller crops: all)."""


@config
class ContrastConfig:
    """Which percentiles of a crop may become 0.1 and 0.9.

    Attributes:
        probability: Of changing a crop at all.
        low: Range of the lower percentile, drawn uniformly.
        high: Range of the upper percentile, drawn uniformly.
    """

    probability: float = 1.0
    low: tuple[float, float] = (0.1, 2.0)
    high: tuple[float, float] = (98.0, 99.9)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(0 <= self.probability <= 1, "contrast.probability", "0 to 1", self.probability)
        require(0 <= self.low[0] <= self.low[1] < 50, "contrast.low", "two rising percentiles below 50", self.low)
        high = self.high
        require(50 < high[0] <= high[1] <= 100, "contrast.high", "two rising percentiles from 50 to 100", high)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Drawn parameters.

    Attributes:
        percentiles: (n, 2) lower and upper percentile.
        on: (n,) false where a crop stays as it is.
    """

    percentiles: Float[Tensor, "n 2"]
    on: Bool[Tensor, " n"]


def sample(rngs: Sequence[np.random.Generator], config: ContrastConfig) -> Contrast:
    """Draw the percentiles of each crop from its own generator."""
    drawn = [(rng.random() < config.probability, rng.uniform(*config.low), rng.uniform(*config.high)) for rng in rngs]
    return Contrast(
        percentiles=torch.tensor([[low, high] for _, low, high in drawn], dtype=torch.float32),
        on=torch.tensor([on for on, _, _ in drawn], dtype=torch.bool),
    )


def percentiles(images: Float[Tensor, "n 1 z y x"], wanted: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Percentiles of each crop, interpolated linearly between ranks.

    Of crops above `SAMPLED` voxels only every s-th voxel per axis is sorted:
    sorting all of a 96^3 crop would cost more than all the rest of the op.
    """
    stride = math.ceil((images[0].numel() / SAMPLED) ** (1 / 3) - 1e-9)
    values = images[:, 0, ::stride, ::stride, ::stride].flatten(1)
    rank = wanted.to(images) / 100 * (values.shape[1] - 1)
    below = rank.floor().long()
    above = (below + 1).clamp(max=values.shape[1] - 1)
    ordered = _ordered_at(values, torch.cat([below, above], dim=1))
    return torch.lerp(ordered.gather(1, below), ordered.gather(1, above), rank - below)


def _ordered_at(values: Float[Tensor, "n v"], ranks: Int64[Tensor, "n r"]) -> Float[Tensor, "n v"]:
    """Values in an order that is right at the ranks; on the host nothing more is sorted than that needs."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    rows = [np.partition(row, np.unique(at)) for row, at in zip(values.numpy(), ranks.numpy(), strict=True)]
    return torch.from_numpy(np.stack(rows))


def _ends(images: Float[Tensor, "n 1 z y x"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    if images.device.type != "cpu":
        least, greatest = images.flatten(1).aminmax(dim=1)
        return least, greatest
    ends = [torch.aminmax(one) for one in images]  # a host takes ten times as long along an axis
    return torch.stack([one.min for one in ends]), torch.stack([one.max for one in ends])


def _curve(
    images: Float[Tensor, "n 1 z y x"], params: Contrast
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"], Bool[Tensor, " n"]]:
    """Where the three parts of each crop's map begin, their widths, and whether the crop is to be changed."""
    low, high = percentiles(images, params.percentiles.to(images.device)).unbind(1)
    least, greatest = _ends(images)
    knots = torch.stack([least, low, high, greatest], dim=1)
    width = (knots[:, 1:] - knots[:, :-1]).clamp(min=1e-6)
    return knots[:, :-1], width, params.on.to(images.device) & (high - low >= FLAT)


def apply(
    images: Float[Tensor, "n 1 z y x"], params: Contrast, exponents: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "n 1 z y x"]:
    """Map the crop's minimum, two percentiles and maximum to 0, 0.1, 0.9 and 1, linearly in between.

    A crop whose percentiles (nearly) coincide, such as one of mostly air, is
    returned unchanged: there is no contrast to spread, and 0/0 would be NaN.

    Args:
        images: Crops of values in 0..1.
        params: What was drawn for them.
        exponents: The gamma curve of each crop that comes next, for one pass over both; none if None.
    """
    start, width, change = _curve(images, params)
    if change.device.type == "cpu":  # of another device it would be waited for
        parts = Parts(start, width, torch.tensor(HEIGHTS), tuple(change.tolist()))
        done = change_greys(images, parts, exponents)
        if done is not None:
            return done
    mapped = torch.zeros_like(images)
    for part, height in enumerate(HEIGHTS):
        first, wide = (one[:, part].view(-1, 1, 1, 1, 1) for one in (start, width))
        mapped += height * ((images - first) / wide).clamp(0, 1)
    mapped = torch.where(change.view(-1, 1, 1, 1, 1), mapped, images)
    return mapped if exponents is None else gamma.apply(mapped, Gamma(exponents))
