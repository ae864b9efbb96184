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


def on_body(generator: np.random.Generator, occupancy: Occupancy, shape: Sequence[int], size: Sequence[int]) -> Triple:
    """Draw a centre in the body, cells by their share of it, and keep the box inside the scan where it fits."""
    shares = occupancy.decode().reshape(-1).astype(np.float64)
    if shares.sum() <= 0:
        return place(generator, shape, size)
    cell = np.unravel_index(int(generator.choice(len(shares), p=shares / shares.sum())), occupancy.grid)
    low = np.asarray(cell) * np.asarray(occupancy.cell)
    high = np.minimum(low + occupancy.cell, shape)
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
