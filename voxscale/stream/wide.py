"""Crops wider than the patch: how much wider is a function of the sample, and coarser levels are read for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from voxscale.augment import spatial
from voxscale.augment.spatial import Spatial
from voxscale.contract import InputContract
from voxscale.pyramid import LEVELS, Level
from voxscale.seed import rng
from voxscale.stream.crop import Box, Size, cut, matrix, millimetres
from voxscale.volume import Triple

MOST = LEVELS - 1
"""Most levels that are wider than the patch: a store's pyramid goes no further."""
SHOWN = 0.5
"""Least share of a wide crop that must lie in its scan; else it is made half as wide."""
COARSE = 2**0.5
"""Voxels of a level may be so many times as long as those of a crop before zoom, along axes that the level halves."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """A mixture of levels that moves from the first to the last as a run goes on.

    Attributes:
        budget: Share of the run for each level.
        blend: Share of the run over which one level gives way to the next.
    """

    budget: tuple[float, ...]
    blend: float

    def shares(self, progress: float) -> list[float]:
        """How likely each level is when a share of the run is done; a pure function of it.

        Around the end of a level's budget the next one takes over linearly.
        """
        reached = [1.0]
        end = 0.0
        for share in self.budget[:-1]:
            end += share
            since = progress - end
            reached.append(min(max(since / self.blend + 0.5, 0.0), 1.0) if self.blend else float(since >= 0))
        # A level whose budget is small is passed over, not counted twice.
        for number in range(len(reached) - 2, 0, -1):
            reached[number] = max(reached[number], reached[number + 1])
        return [a - b for a, b in zip(reached, [*reached[1:], 0.0], strict=True)]

    def level(self, progress: float, draw: float) -> int:
        """The level of a sample.

        Args:
            progress: Share of the run that is done.
            draw: The sample's own number in 0..1, see `level_draw`.
        """
        passed = 0.0
        for level, share in enumerate(self.shares(progress)):
            passed += share
            if draw < passed:
                return level
        return len(self.budget) - 1


def level_draw(seed: int) -> float:
    """The number in 0..1 that decides a sample's level, whoever asks.

    Args:
        seed: Of the sample's first crop.
    """
    return float(rng(seed, "part_whole", "level").random())


@dataclass(frozen=True, slots=True)
class WideCrops:
    """Which crop of a sample is wide, and how wide: a pure function of the sample's index and seed.

    Attributes:
        view: Number of the crop.
        wider: Levels at which it is wider than the patch: 2 ** wider times its side at the first, and so on.
        curriculum: Which level when.
        batch: Samples of a step.
        steps: Of the run.
    """

    view: int
    wider: int
    curriculum: Curriculum
    batch: int
    steps: int

    def factor(self, index: int, seed: int) -> int:
        """How many times the patch's side a sample's crop shall have.

        Args:
            index: Global sample index.
            seed: Of the sample's first crop.
        """
        level = self.curriculum.level(index // self.batch / self.steps, level_draw(seed))
        return 2 ** max(0, self.wider - level)


def widened(
    drawn: Spatial, factor: int, patch: Size, contract: InputContract, shape: Sequence[int], spacing: Triple
) -> tuple[Spatial, int]:
    """Widen a crop, as far as its scan has something to show in it; an axis of one voxel is kept.

    Args:
        drawn: The crop's own transform.
        factor: How much wider it shall be; 1, 2 or 4.
        patch: Voxels of the patch.
        contract: Of the training.
        shape: Voxels of the scan.
        spacing: Of the scan in mm.

    Returns:
        The transform of the wide crop, and how much wider it is.
    """
    while factor > 1:
        z, y, x = (zoom * (factor if n > 1 else 1) for zoom, n in zip(drawn.zoom, patch, strict=True))
        wide = replace(drawn, zoom=(z, y, x))
        size = np.array(spatial.extent(wide, patch, contract.spacing, spacing))
        shown = np.where(np.array(patch) > 1, np.minimum(shape, size) / size, 1.0)
        if shown.prod() >= SHOWN:
            return wide, factor
        factor //= 2
    return drawn, 1


def level_for(factor: int, patch: Size, contract: InputContract, spacing: Triple, pyramid: Sequence[Level]) -> int:
    """The coarsest level that a crop so much wider is no sharper than, see `COARSE`; the scan itself where it is not.

    Args:
        factor: How much wider the crop is.
        patch: Voxels of the patch.
        contract: Of the training.
        spacing: Of the scan in mm.
        pyramid: The levels there are, the scan itself first.
    """
    if factor == 1:
        return 0
    steps = np.array(contract.spacing) * np.where(np.array(patch) > 1, factor, 1) / spacing
    by = np.array([level.factor for level in pyramid])
    return int(np.flatnonzero(((by == 1) | (by <= COARSE * steps)).all(axis=1))[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a crop is read.

    Attributes:
        level: Of the pyramid.
        box: Voxels of this level.
        matrix: 3x4; maps patch voxels to voxels of the box.
        mm: 3x4; maps patch voxels to mm from the scan's first voxel.
    """

    level: int
    box: Box
    matrix: NDArray[np.float64]
    mm: NDArray[np.float64]


def placed(
    drawn: Spatial, patch: Size, contract: InputContract, spacing: Triple, centre: Triple, level: int, one: Level
) -> Place:
    """Where a crop lies in a level of its scan.

    Args:
        drawn: The crop's transform.
        patch: Voxels of the patch.
        contract: Of the training.
        spacing: Of the scan in mm.
        centre: Voxel of the scan (may be fractional) that is the crop's centre.
        level: Number of the level.
        one: The level.
    """
    by, fine = np.array(one.factor), np.array(spacing)
    coarse: Triple = tuple((fine * by).tolist())  # pyright: ignore[reportAssignmentType]  # three
    # The outer faces of a level's first voxel are those of the scan's; its centre lies deeper.
    middle: Triple = tuple(np.where(by == 1, centre, (np.array(centre) + 0.5) / by - 0.5).tolist())  # pyright: ignore[reportAssignmentType]
    box = cut(one.shape, spatial.extent(drawn, patch, contract.spacing, coarse), middle)
    mapping = matrix(drawn, patch, contract, coarse, middle, box)
    mm = millimetres(mapping, box, coarse)
    mm[:, 3] += fine * (by - 1) / 2
    return Place(level, box, mapping, mm)
