"""What a quality rule may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_prep.levels import Levels
from data_prep.values import ends
from voxscale.io.storage import Raw
from voxscale.kernel.filters import Planes
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
        ends: Lowest and highest value.
    """

    volume: Volume
    values: Planes
    label: Raw | None
    classes: Mapping[int, str]
    spacing_known: bool = True
    levels: Levels | None = None
    ends: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        """Look for the lowest and the highest value once."""
        known = self.levels
        object.__setattr__(self, "ends", (known.low, known.high) if known else ends(self.values))

    @property
    def planar(self) -> bool:
        """Whether it is a 2D image."""
        return self.volume.shape[0] == 1
