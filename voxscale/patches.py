"""Choosing the size of a training patch and the strides of the encoder that fits it."""

import math
from collections.abc import Sequence
from typing import Literal

from voxscale.config import config, require
from voxscale.contract import InputContract

Shape = tuple[int, int, int]

STAGES = 5
"""Most downsampling stages of an encoder."""

LEAST = 4
"""Fewest voxels that an axis keeps after its last downsampling."""


@config
class Plan:
    """What a task's data ask of a network.

    Attributes:
        contract: How scans become network input.
        patch: Voxels of a training patch along z, y, x at the contract's spacing.
        strides: Strides along z, y, x of each encoder stage.
    """

    contract: InputContract
    patch: Shape
    strides: tuple[Shape, ...]

    def __post_init__(self) -> None:
        """Check that the patch can be strided; raises `ConfigError`."""
        whole = [math.prod(s[axis] for s in self.strides) for axis in range(3)]
        ok = bool(self.strides) and all(n > 0 and n % step == 0 for n, step in zip(self.patch, whole, strict=True))
        require(ok, "plan.patch", f"a multiple of its strides {whole}", self.patch)


def plan_patch(median_shape: Sequence[float], budget: int, dims: Literal[2, 3] = 3) -> tuple[Shape, tuple[Shape, ...]]:
    """Choose patch and strides for scans of a typical shape.

    An axis of n voxels is halved while at least 4 voxels are left, at most 5
    times; its size must be a multiple of 2 to that power. Each axis starts at
    the size nearest to the median shape; while the patch has too many voxels,
    the largest axis goes to its next smaller size.

    Args:
        median_shape: Voxels along z, y, x at the target spacing.
        budget: Most voxels of a patch.
        dims: 3, or 2 for patches of one slice.

    Returns:
        The patch (z, y, x) and the strides (z, y, x) of the 5 stages.

    Raises:
        ConfigError: If the shape is not positive or the budget below 64 voxels, or 16 of a slice.
    """
    require(len(median_shape) == 3 and min(median_shape) > 0, "shape", "three positive numbers", tuple(median_shape))
    require(budget >= LEAST**dims, "budget_voxels", f"at least {LEAST**dims}", budget)
    patch = [1] * (3 - dims) + [_nearest(n) for n in median_shape[3 - dims :]]
    while math.prod(patch) > budget:
        axis = patch.index(max(patch))
        patch[axis] = _at_most(patch[axis] - 1)
    strides = [tuple(2 if stage < _halvings(n) else 1 for n in patch) for stage in range(STAGES)]
    z, y, x = patch
    return (z, y, x), tuple((s[0], s[1], s[2]) for s in strides)


def _halvings(size: int) -> int:
    """How often an axis is halved: while at least 4 voxels are left, at most once per stage."""
    return min(STAGES, int(math.log2(size / LEAST)))


def _at_most(size: int) -> int:
    """The largest allowed size not above `size` (which is at least 4)."""
    step = 2 ** _halvings(size)
    return size // step * step


def _nearest(size: float) -> int:
    """The allowed size nearest to `size`, the smaller one of two."""
    low = _at_most(max(LEAST, int(size)))
    high = low + 2 ** _halvings(low)
    return low if size - low <= high - size else high
