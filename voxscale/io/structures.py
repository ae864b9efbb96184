"""What label files of several structures have in common: DICOM-SEG, RTSTRUCT and folders of masks."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Structure:
    """One named structure of a label file.

    Attributes:
        number: Its number in the file, from 1.
        code: Meaning of its code in a public dictionary, if it has one; safe to show.
        name: What a person called it. May hold anything, so it stays in memory.
    """

    number: int
    code: str | None
    name: str


@dataclass(frozen=True, slots=True)
class StructureHeader:
    """What links a label file to its image.

    Attributes:
        series: SeriesInstanceUIDs it refers to.
        frame_of_reference: FrameOfReferenceUID, or empty.
        structures: In the order of their numbers.
    """

    series: tuple[str, ...]
    frame_of_reference: str
    structures: tuple[Structure, ...]


@dataclass(frozen=True, slots=True)
class LoadedLabel:
    """A label map on the grid of its image.

    Attributes:
        voxels: (z, y, x) uint8.
        overlaps: Voxels that two classes claim, by (earlier, later) class; the later one has them.
        notes: Decisions made on the way, without any text of the file.
    """

    voxels: NDArray[np.uint8]
    overlaps: dict[tuple[int, int], int] = field(default_factory=lambda: dict[tuple[int, int], int]())
    notes: tuple[str, ...] = ()


def paint(label: LoadedLabel, mask: NDArray[np.bool_], value: int, where: tuple[slice, ...] = (slice(None),)) -> None:
    """Write one structure into a label map, counting what it takes from earlier ones.

    Args:
        label: Changed in place.
        mask: True where the structure is, of the shape of `where`.
        value: Its class.
        where: Part of the map.
    """
    part = label.voxels[where]
    taken, counts = np.unique(part[mask & (part != 0) & (part != value)], return_counts=True)
    for earlier, count in zip(taken.tolist(), counts.tolist(), strict=True):
        pair = (int(earlier), value)
        label.overlaps[pair] = label.overlaps.get(pair, 0) + int(count)
    part[mask] = value
