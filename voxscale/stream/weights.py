"""How often each group of bricks or scans is shown: by its size, a temperature, and explicit factors."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.config import config, require


@config
class WeightsConfig:
    """Sampling weights of groups `dataset/modality/body_part`.

    Attributes:
        temperature: 1 shows every brick equally often, so groups by their sizes; 0 shows every group equally
            often; between, a group of n bricks counts as n to this power.
        factors: Further factor of each group by a part of its name, such as `MR`, `chest` or `main/CT/chest`;
            0 leaves it out.
    """

    temperature: float = 1.0
    factors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(0 <= self.temperature <= 1, "weights.temperature", "in [0, 1]", self.temperature)
        ok = all(np.isfinite(value) and value >= 0 for value in self.factors.values())
        require(ok, "weights.factors", "finite and at least 0", self.factors)


def group_weights(counts: Mapping[str, int], config: WeightsConfig) -> dict[str, float]:
    """Mean showings of a brick of each group, so that the mean over all bricks is 1.

    Args:
        counts: Bricks of each group.
        config: Temperature and factors.

    Raises:
        ConfigError: If a factor names no group, or none is left.
    """
    parts = {name: {name, *name.split("/")} for name in counts}
    known = set[str]().union(*parts.values()) if parts else set[str]()
    for name in config.factors:
        require(name in known, "weights.factors", "parts of a group's name", name, sorted(known))
    masses = {
        name: n**config.temperature * float(np.prod([f for part, f in config.factors.items() if part in parts[name]]))
        for name, n in counts.items()
    }
    total = sum(masses.values())
    require(total > 0, "weights.factors", "above 0 for at least one group that has bricks", config.factors)
    bricks = sum(counts.values())
    return {name: masses[name] / total * bricks / n for name, n in counts.items() if n}


def round_systematically(expected: Sequence[float] | NDArray[Any], offset: float) -> NDArray[np.int64]:
    """Whole numbers near the expected ones, each below or above by less than 1, with the same sum (rounded).

    Systematic sampling: equally spaced ticks are counted along the cumulative sum.

    Args:
        expected: Numbers at least 0.
        offset: In [0, 1), where the ticks begin; drawn at random, every number is right on average.
    """
    ends = np.cumsum(np.asarray(expected, dtype=np.float64))
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    ends *= round(ends[-1]) / ends[-1] if ends[-1] > 0 else 1.0
    ticks = np.floor(ends + offset).astype(np.int64)
    ticks[ends >= ends[-1]] = round(ends[-1])  # a rounding must not cost a tick, nor move it to a 0 at the end
    return np.diff(np.minimum(ticks, ticks[-1]), prepend=0)
