"""Where a crop lies in a scan or brick, and how its voxels map to the network's patch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from voxscale.augment import spatial
from voxscale.augment.spatial import Spatial
from voxscale.contract import InputContract
from voxscale.entry import Entry, Occupancy
from voxscale.shards import BrickInfo
from voxscale.volume import Triple

Size = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def place(generator: np.random.Generator, shape: Sequence[int], size: Sequence[int]) -> Triple:
    """Draw the centre of a box so that the box lies inside the scan; an axis shorter than the box is centred."""
    room = np.maximum(np.asarray(shape) - np.asarray(size), 0)
    start = generator.random(3) * room
    z, y, x = np.where(room > 0, start + (np.asarray(size) - 1) / 2, (np.asarray(shape) - 1) / 2)
    return float(z), float(y), float(x)


def cut(shape: Sequence[int], size: Sequence[int], centre: Triple) -> Box:
    """The box of a given size around a centre, clipped to the scan."""
    start = np.floor(np.asarray(centre) - (np.asarray(size) - 1) / 2).astype(int)
    low = np.clip(start, 0, np.asarray(shape) - 1)
    high = np.clip(start + size, low + 1, shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def intensity_scale(entry: Entry | BrickInfo, contract: InputContract) -> tuple[float, float]:
    """Slope and offset that turn stored numbers into network input."""
    low, high = contract.window(entry.modality, entry.percentiles)
    return entry.slope / (high - low), (entry.intercept - low) / (high - low)


def spans(box: Box) -> list[tuple[int, int]]:
    """A box as pairs, as readers take it."""
    return [(s.start, s.stop) for s in box]


def on_body(
    generator: np.random.Generator,
    occupancy: Occupancy,
    shape: Sequence[int],
    size: Sequence[int],
    lead: Sequence[int] = (0, 0, 0),
) -> Triple:
    """Draw a centre in the body, all of its voxels alike, and keep the box inside the scan where it fits.

    Args:
        generator: Of the draw.
        occupancy: Share of body of each cell.
        shape: Voxels of the scan or brick.
        size: Of the box.
        lead: Voxels by which the first cell begins before the brick.
    """
    shares = occupancy.decode().astype(np.float64)
    cells: list[NDArray[np.int64]] = []
    for axis, (n, cell) in enumerate(zip(shape, occupancy.cell, strict=True)):
        edges = np.clip(np.arange(shares.shape[axis] + 1) * cell - lead[axis], 0, n)
        cells.append(np.stack([edges[:-1], edges[1:]], axis=1))
        shares = np.moveaxis(np.moveaxis(shares, axis, -1) * np.diff(edges), -1, axis)
    flat = shares.reshape(-1)
    if flat.sum() <= 0:
        return place(generator, shape, size)
    chosen = np.unravel_index(int(generator.choice(len(flat), p=flat / flat.sum())), occupancy.grid)
    low, high = np.array([each[at] for each, at in zip(cells, chosen, strict=True)]).T
    return inside(low + generator.random(3) * (high - low) - 0.5, shape, size)


def inside(centre: NDArray[np.float64], shape: Sequence[int], size: Sequence[int]) -> Triple:
    """The centre nearest to a wanted one whose box lies inside the scan; an axis shorter than the box is centred."""
    half, last = (np.asarray(size) - 1) / 2, np.asarray(shape) - 1
    kept = np.where(last > 2 * half, np.clip(centre, half, np.maximum(last - half, half)), last / 2)
    z, y, x = kept.tolist()
    return z, y, x


def matrix(
    drawn: Spatial, patch: Size, contract: InputContract, spacing: Triple, centre: Triple, box: Box
) -> NDArray[np.float64]:
    """Map patch voxels to voxels of the box that was cut."""
    z, y, x = (c - s.start for c, s in zip(centre, box, strict=True))
    return spatial.matrix(drawn, patch, contract.spacing, spacing, (z, y, x))


def millimetres(
    to_box: NDArray[np.float64], box: Box, spacing: Triple, start: Sequence[int] = (0, 0, 0)
) -> NDArray[np.float64]:
    """Map patch voxels to mm from the scan's first voxel, along the scan's own axes.

    Args:
        to_box: 3x4; maps patch voxels to voxels of the box.
        box: In the scan or brick.
        spacing: Of the scan along z, y, x in mm.
        start: First voxel of the brick in the scan.
    """
    shift = np.array([s.start + first for s, first in zip(box, start, strict=True)], dtype=np.float64)
    return np.asarray(spacing)[:, None] * np.column_stack([to_box[:, :3], to_box[:, 3] + shift])
