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


def plan_patch(
    median_shape: Sequence[float],
    budget: int,
    dims: Literal[2, 3] = 3,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Shape, tuple[Shape, ...]]:
    """Choose patch and strides for scans of a typical shape and spacing.

    An axis of n voxels can be halved while at least 4 voxels are left, at most 5
    times; its size must be a multiple of 2 to that power. Each axis starts at
    the size nearest to the median shape; while the patch has too many voxels,
    the axis that is longest in mm and has more than 4 voxels goes to its next
    smaller size. So a patch is as near to a cube of the body as scans and
    sizes allow, however thick their slices are. Which axes a stage halves follows from
    the spacing, see `spacing_strides`.

    Args:
        median_shape: Voxels along z, y, x at the target spacing.
        budget: Most voxels of a patch.
        dims: 3, or 2 for patches of one slice.
        spacing: Target spacing along z, y, x in mm.

    Returns:
        The patch (z, y, x) and the strides (z, y, x) of the 5 stages.

    Raises:
        ConfigError: If shape or spacing are not positive or the budget is below 64 voxels, or 16 of a slice.
    """
    require(len(median_shape) == 3 and min(median_shape) > 0, "shape", "three positive numbers", tuple(median_shape))
    require(len(spacing) == 3 and min(spacing) > 0, "spacing", "three positive numbers", tuple(spacing))
    require(budget >= LEAST**dims, "budget_voxels", f"at least {LEAST**dims}", budget)
    patch = [1] * (3 - dims) + [_nearest(n) for n in median_shape[3 - dims :]]
    while math.prod(patch) > budget:
        axis = max((axis for axis in range(3) if patch[axis] > LEAST), key=lambda axis: patch[axis] * spacing[axis])
        patch[axis] = _at_most(patch[axis] - 1)
    z, y, x = patch
    return (z, y, x), spacing_strides(spacing, patch, STAGES)


def spacing_strides(
    spacing: Sequence[float], patch: Sequence[int], steps: int, least: int = LEAST
) -> tuple[Shape, ...]:
    """Strides that bring voxels of uneven spacing towards cubes.

    A step halves each axis that is less than twice as coarse as the finest axis
    that can still be halved; an axis can be halved while at least `least` voxels
    are left. This is nnU-Net's rule (Isensee et al. 2021, supplementary note 5).

    Args:
        spacing: (z, y, x) in mm.
        patch: (z, y, x) in voxels.
        steps: Downsampling steps of the network; those past the last halving keep the resolution.
        least: Fewest voxels that an axis keeps.

    Raises:
        ConfigError: If spacing or patch are not three positive numbers.
    """
    for name, values in (("spacing", spacing), ("patch", patch)):
        require(len(values) == 3 and min(values) > 0, name, "three positive numbers", tuple(values))
    spacing, patch = list(spacing), list(patch)
    made: list[Shape] = []
    for _ in range(steps):
        can = [axis for axis in range(3) if patch[axis] >= 2 * least]
        finest = min((spacing[axis] for axis in can), default=0.0)
        z, y, x = (2 if axis in can and spacing[axis] < 2 * finest else 1 for axis in range(3))
        made.append((z, y, x))
        spacing = [mm * n for mm, n in zip(spacing, made[-1], strict=True)]
        patch = [size // n for size, n in zip(patch, made[-1], strict=True)]
    return tuple(made)


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
