"""What a quality rule may look at."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.levels import Levels
from voxscale.io.storage import Raw
from voxscale.volume import Volume


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan as read, before it is accepted.

    Attributes:
        volume: The scan.
        values: (z, y, x) float32, its values; (3, 1, y, x) for a colour image.
        label: Its label as read, if it has one; not yet known to hold whole numbers.
        classes: Declared names of the label values; empty if none are declared.
        spacing_known: False where the input states no voxel size.
        levels: Its different values; None for numbers that are not counted.
    """

    volume: Volume
    values: NDArray[np.float32]
    label: Raw | None
    classes: Mapping[int, str]
    spacing_known: bool = True
    levels: Levels | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest value."""
        known = self.levels
        return (known.low, known.high) if known else (float(self.values.min()), float(self.values.max()))

    @property
    def planar(self) -> bool:
        """Whether it is a 2D image."""
        return self.volume.shape[0] == 1
