"""Which blocks Volume Fusion blends: the options of both published algorithms, and what fits a patch."""

from typing import Literal

from voxscale.config import config, require

Size = tuple[int, int, int]


@config
class VolumeFusionConfig:
    """Which blocks are blended, and with what.

    Attributes:
        kind: Tells objectives apart in a saved config.
        layout: `grid`: a share of the cells of one regular grid per sample (2024 and later);
            `boxes`: boxes of random size and place, later ones painted over earlier ones (2023).
        pairing: `within`: two crops of one scan (2024 and later); `across`: the sample before in the batch
            is the foreground of each sample (2023), that of all ranks: the first one's comes from the rank before.
        levels: K; class k is blended with coefficient k / K, class 0 is pure background.
        ratio: Share of the grid's whole cells that are blended (`grid` only).
        block_min: Least side of a block in voxels, one number or one per axis (z, y, x).
        block_max: Greatest side of a block in voxels, one number or one per axis (z, y, x).
        boxes: Least and greatest number of boxes (`boxes` only).
        ordinal_weight: Weight of the earth mover's distance between true and guessed level, beside half Dice and
            half cross-entropy, which take a guess that is off by one level for as wrong as any other; 0 as published.
        least_difference: Voxels at which both crops differ by less, of values in 0..1, do not count: air on air looks
            the same whatever the level is. 0 as published, where all count; but never do two crops that are equal in
            all voxels.
    """

    kind: Literal["volume_fusion"] = "volume_fusion"
    layout: Literal["grid", "boxes"] = "grid"
    pairing: Literal["within", "across"] = "within"
    levels: int = 4
    ratio: float = 0.7
    block_min: int | Size = 8
    block_max: int | Size = 32
    boxes: tuple[int, int] = (10, 40)
    ordinal_weight: float = 0.0
    least_difference: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(1 <= self.levels <= 254, "objective.levels", "1 to 254", self.levels)
        require(0 < self.ratio <= 1, "objective.ratio", "above 0 and at most 1", self.ratio)
        least, greatest = sides(self.block_min), sides(self.block_max)
        require(min(least) >= 1, "objective.block_min", "at least 1 voxel", self.block_min)
        rising = all(low <= high for low, high in zip(least, greatest, strict=True))
        require(rising, "objective.block_max", f"at least block_min, {self.block_min}", self.block_max)
        low, high = self.boxes
        require(1 <= low <= high, "objective.boxes", "two rising numbers from 1", self.boxes)
        require(self.ordinal_weight >= 0, "objective.ordinal_weight", "at least 0", self.ordinal_weight)
        told = self.least_difference
        require(0 <= told < 1, "objective.least_difference", "at least 0 and below 1", told)

    @property
    def views_per_sample(self) -> int:
        """Crops of each scan that the objective needs."""
        return 2 if self.pairing == "within" else 1

    @property
    def classes(self) -> int:
        """Channels that the network must return: the levels and the background."""
        return self.levels + 1


def sides(block: int | Size) -> Size:
    """Side along z, y, x of a block given by one number or three."""
    return (block, block, block) if isinstance(block, int) else block


def check(config: VolumeFusionConfig, patch: Size) -> None:
    """Refuse blocks that do not fit the patch: a grid of them would be empty, without any error.

    Raises:
        ConfigError: Naming `objective.block_max`.
    """
    fits = all(side <= size for side, size in zip(sides(config.block_max), patch, strict=True))
    require(fits, "objective.block_max", f"at most the patch, {patch}", config.block_max)
