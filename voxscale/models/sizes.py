"""Sizes of images that a network takes, and of its features, from its strides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from voxscale.config import require

Dims = Literal[2, 3]
Stride = tuple[int, int, int]
Strides5 = tuple[Stride, Stride, Stride, Stride, Stride]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an encoder.

    Attributes:
        channels: Channels of its features.
        stride: Input voxels per feature along (z, y, x), in 2D along (y, x).
    """

    channels: int
    stride: tuple[int, ...]


def nearest_multiple(size: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """The multiples of `factors` nearest to `size`, at least one of each; halfway cases are rounded up."""
    return tuple(max((2 * n + f) // (2 * f), 1) * f for n, f in zip(size, factors, strict=True))


def strided_size(size: Sequence[int], strides: Sequence[Stride]) -> tuple[int, ...]:
    """The input size nearest to the one wanted that a network with these strides accepts.

    Every axis must be a multiple of the product of its strides, or decoder and
    encoder features do not fit together; halfway cases are rounded up. And the
    deepest stage must keep more than one voxel, because the norm of a single
    value is always zero; where it would not, the axis is doubled for which that is
    the shortest way, of equal ones the last.

    Args:
        size: Wanted (z, y, x) or (y, x) in voxels.
        strides: (z, y, x) stride of each downsampling step.
    """
    first = 3 - len(size)
    factors = [math.prod(step) for step in zip(*(stride[first:] for stride in strides), strict=True)]
    legal = nearest_multiple(size, factors)
    if legal != tuple(factors):
        return legal
    further = [abs(n - 2 * f) - abs(n - f) for n, f in zip(size, factors, strict=True)]
    axis = max(range(len(size)), key=lambda i: (-further[i], i))
    return (*legal[:axis], 2 * legal[axis], *legal[axis + 1 :])


def check_outputs(in_channels: int, classes: int, heads: int, most: int) -> None:
    """Refuse impossible numbers of channels, classes and heads; raises `ConfigError`."""
    require(in_channels >= 1, "model.in_channels", "at least 1", in_channels)
    require(0 <= heads <= most, "model.heads", f"0 to {most}", heads)
    fewest = 1 if heads else 0
    require(fewest <= classes <= 256, "model.classes", f"{fewest} to 256 with {heads} heads", classes)


def check_stages(stages: Sequence[int], levels: int) -> None:
    """Refuse levels to recompute that are not there; raises `ConfigError`."""
    ok = all(0 <= stage < levels for stage in stages) and len(set(stages)) == len(stages)
    require(ok, "model.checkpoint_stages", f"different numbers from 0 to {levels - 1}", tuple(stages))


def check_strides(strides: Sequence[Stride], dims: Dims, steps: int) -> None:
    """Refuse strides of a wrong number or form; raises `ConfigError`."""
    ok = len(strides) == steps and all(len(s) == 3 and all(1 <= n <= 3 for n in s) for s in strides)
    require(ok, "model.strides", f"{steps} triples of 1 to 3", tuple(strides))
    flat = dims == 3 or all(s[0] == 1 for s in strides)
    require(flat, "model.strides", "1 along z for images of two dimensions", tuple(strides))


def levels_of(channels: Sequence[int], strides: Sequence[Stride], dims: Dims) -> tuple[Level, ...]:
    """Levels of a network that starts at full resolution and goes down by `strides`."""
    made = [Level(channels[0], (1,) * dims)]
    for count, stride in zip(channels[1:], strides, strict=True):
        made.append(Level(count, tuple(a * b for a, b in zip(made[-1].stride, stride[3 - dims :], strict=True))))
    return tuple(made)


def grid(size: Sequence[int], level: Level) -> int:
    """Voxels that an image of a legal size has at a level."""
    return math.prod(n // s for n, s in zip(size, level.stride, strict=True))
