"""What label files of several structures have in common: DICOM-SEG, RTSTRUCT and folders of masks."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from voxscale.volume import Affine

GRID_TOLERANCE = 0.1
"""A label's voxel may lie off the image's voxel by this share of a voxel."""

TOGETHER = 32
"""Slices, or rows of one, that are painted at a time."""


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
        structures: In the order of the file.
    """

    series: tuple[str, ...]
    frame_of_reference: str
    structures: tuple[Structure, ...]


@dataclass(frozen=True, slots=True)
class LoadedLabel:
    """A label map on the grid of its image.

    Attributes:
        voxels: (z, y, x) uint8.
        overlaps: Voxels that two classes claim, by (earlier, later) class; the later one has them. Where three
            overlap, the first and second, and the second and third are counted.
        notes: Decisions made on the way, without any text of the file.
    """

    voxels: NDArray[np.uint8]
    overlaps: dict[tuple[int, int], int] = field(default_factory=lambda: dict[tuple[int, int], int]())
    notes: tuple[str, ...] = ()


def paint(
    label: LoadedLabel, mask: NDArray[np.bool_], value: int, where: tuple[slice | int, ...] = (slice(None),)
) -> None:
    """Write one structure into a label map, counting what it takes from earlier ones.

    Args:
        label: Changed in place.
        mask: True where the structure is, of the shape of `where`.
        value: Its class.
        where: Part of the map.
    """
    target = label.voxels[where]
    for start in range(0, len(target), TOGETHER):
        part, drawn = target[start : start + TOGETHER], mask[start : start + TOGETHER]
        taken, counts = np.unique(part[drawn & (part != 0) & (part != value)], return_counts=True)
        for earlier, count in zip(taken.tolist(), counts.tolist(), strict=True):
            pair = (int(earlier), value)
            label.overlaps[pair] = label.overlaps.get(pair, 0) + int(count)
        part[drawn] = value


def empty_note(wanted: Collection[int], drawn: Collection[int]) -> tuple[str, ...]:
    """A note on structures of which the file shows no voxel.

    Args:
        wanted: Numbers of the structures that are read.
        drawn: Numbers of those that have voxels.
    """
    empty = len(set(wanted) - set(drawn))
    return (f"label: {empty} of {len(wanted)} structures are empty",) if empty else ()


def off_grid(own: Affine, grid: Affine, shape: tuple[int, ...]) -> float:
    """How far the corners of an array lie from the same indices of a grid, in voxels of the grid, along its worst axis.

    Args:
        own: 4x4, of the array.
        grid: 4x4, of the grid.
        shape: Of the array.

    Returns:
        The distance; infinite if a number is not finite.
    """
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), dtype=np.float64).reshape(3, -1)
    apart = (np.linalg.inv(grid) @ own - np.eye(4))[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    worst = float(np.abs(apart).max())
    return worst if np.isfinite(worst) else float("inf")
