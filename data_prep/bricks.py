"""Where the bricks of a scan lie: boxes along the edges of its chunks that show enough body."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import CHUNK, layout_of
from voxscale.config import config, require
from voxscale.contract import InputContract
from voxscale.entry import Entry, Occupancy
from voxscale.pyramid import LEVELS, Level
from voxscale.shards import BrickInfo

Span = tuple[int, int]
Box = tuple[Span, Span, Span]


@config
class PackConfig:
    """How scans are cut into bricks and bricks gathered in tars.

    Attributes:
        factor: Least edge of a brick over the edge of a patch, both in mm; room for zooming and for several places.
            Edges are rounded up to whole chunks.
        overlap: Share of a brick's edge that it shares with its neighbour, at least, where chunks allow it.
        foreground: Least share of body in a brick; emptier ones are counted and left out.
        shard_mb: Size at which a tar is closed, in 10^6 bytes.
        holdout: Share of people whose scans go into tars of their own that training does not read.
        levels: Levels of each scan: 1 is the scan itself, 3 adds the two coarser ones of the store's pyramid, from
            which part-whole reads wholes that are larger than its crops. About a seventh of the scan's bytes.
    """

    factor: float = 1.5
    overlap: float = 0.25
    foreground: float = 0.05
    shard_mb: int = 512
    holdout: float = 0.0
    levels: int = 1

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(1 <= self.factor <= 1000, "pack.factor", "1 to 1000", self.factor)
        require(0 <= self.overlap < 1, "pack.overlap", "in [0, 1)", self.overlap)
        require(0 <= self.foreground <= 1, "pack.foreground", "in [0, 1]", self.foreground)
        require(self.shard_mb >= 1, "pack.shard_mb", "at least 1", self.shard_mb)
        require(0 <= self.holdout < 1, "pack.holdout", "in [0, 1)", self.holdout)
        require(1 <= self.levels <= LEVELS, "pack.levels", f"1 to {LEVELS}", self.levels)


def tile(length: int, edge: int, overlap: float) -> list[int]:
    """Starts of equally spaced tiles of one edge that cover a length, at least `overlap` shared by neighbours."""
    if edge >= length:
        return [0]
    count = math.ceil((length - edge) / max(edge * (1 - overlap), 1)) + 1
    return [round(i * (length - edge) / (count - 1)) for i in range(count)]


def brick_boxes(entry: Entry, patch: Sequence[int], contract: InputContract, config: PackConfig) -> list[Box]:
    """Boxes of one scan's bricks: whole chunks that cover its body's bounding box."""
    axes: list[list[Span]] = []
    for axis, chunk in enumerate(layout_of(entry.shape, entry.dtype).chunk):
        n = entry.shape[axis]
        low, high = entry.foreground_box[axis]
        first, last, all_chunks = low // chunk, -(-high // chunk), -(-n // chunk)
        wanted = patch[axis] * contract.spacing[axis] / entry.spacing[axis] * config.factor
        edge = min(math.ceil(wanted / chunk), all_chunks)
        # A body smaller than a brick is shown with what surrounds it.
        if last - first < edge:
            first = min(max(0, (first + last - edge) // 2), all_chunks - edge)
            last = first + edge
        starts = [first + s for s in tile(last - first, edge, config.overlap)]
        axes.append([(s * chunk, min((s + edge) * chunk, n)) for s in starts])
    return [(z, y, x) for z, y, x in itertools.product(*axes)]


def covered(
    shapes: NDArray[np.integer],
    boxes: NDArray[np.integer],
    spacings: NDArray[np.floating],
    patch: Sequence[int],
    contract: InputContract,
    config: PackConfig,
) -> NDArray[np.float64]:
    """Voxels of all bricks of many volumes together, what neighbours share counted in each: as `brick_boxes` cuts them.

    Args:
        shapes: (n, 3) voxels.
        boxes: (n, 3, 2) half-open index ranges around the bodies.
        spacings: (n, 3) mm.
        patch: Patch size (z, y, x) in voxels of the contract's spacing.
        contract: Of the training to come.
        config: How scans are cut.

    Returns:
        (n,) voxels; of 2D images, which are not cut, any number.
    """
    chunk = np.minimum(shapes, CHUNK)
    chunks = -(-shapes // chunk)
    inside = -(-boxes[:, :, 1] // chunk) - boxes[:, :, 0] // chunk
    wanted = np.array(patch) * np.array(contract.spacing) / spacings * config.factor
    edge = np.minimum(np.ceil(wanted / chunk).astype(np.int64), chunks)
    # How many tiles an axis has, as in `tile`; they begin at different chunks, so only the last one can be cut.
    length = np.maximum(inside, edge)
    count = np.ceil((length - edge) / np.maximum(edge * (1 - config.overlap), 1)) + 1
    first = np.where(inside < edge, _centred(boxes, chunk, chunks, edge), boxes[:, :, 0] // chunk)
    cut = np.where(first + length == chunks, chunks * chunk - shapes, 0)
    return (count * edge * chunk - cut).prod(axis=1)


def _centred(
    boxes: NDArray[np.integer], chunk: NDArray[np.integer], chunks: NDArray[np.integer], edge: NDArray[np.integer]
) -> NDArray[np.integer]:
    """First chunk of a brick around a body that is smaller."""
    both = boxes[:, :, 0] // chunk - (-boxes[:, :, 1] // chunk)
    return np.minimum(np.maximum(0, (both - edge) // 2), chunks - edge)


def body_share(occupancy: Occupancy, box: Box, shape: Sequence[int]) -> float:
    """Share of body in a box, from the occupancy grid; exact where the box begins and ends with cells."""
    shares = occupancy.decode()
    for axis, ((low, high), cell, n) in enumerate(zip(box, occupancy.cell, shape, strict=True)):
        edges = np.minimum(np.arange(shares.shape[axis] + 1) * cell, n)
        inside = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / (high - low)
        shares = np.expand_dims((np.moveaxis(shares, axis, -1) * inside).sum(-1), axis)
    return float(shares.reshape(()))


def occupied(entry: Entry, boxes: Sequence[Box], least: float) -> list[Box]:
    """The boxes that show at least so much body; all, if the index does not know."""
    known = entry.occupancy
    if known is None:
        return list(boxes)
    shares = [body_share(known, box, entry.shape) for box in boxes]
    return [box for box, share in zip(boxes, shares, strict=True) if share > 0 and share >= least]


def describe_level(
    volume: str, entry: Entry, number: int, level: Level, chunk: tuple[int, int, int], pack: str
) -> BrickInfo:
    """Geometry and provenance of a coarser level of a scan."""
    z, y, x = (mm * by for mm, by in zip(entry.spacing, level.factor, strict=True))
    affine = np.asarray(entry.affine, dtype=np.float64)
    # Its first voxel is centred between those that it is the mean of.
    affine[:3, 3] += affine[:3, :3] @ ((np.array(level.factor) - 1) / 2)
    affine[:3, :3] *= level.factor
    whole = describe(volume, entry, [(0, n) for n in entry.shape], chunk, pack, coarse=True)
    return dataclasses.replace(
        whole,
        shape=level.shape,
        spacing=(z, y, x),
        affine=tuple(tuple(row) for row in affine.tolist()),
        level=number,
        occupancy=None,
        lead=(0, 0, 0),
    )


def describe(
    volume: str, entry: Entry, box: Box, chunk: tuple[int, int, int], pack: str, coarse: bool = False
) -> BrickInfo:
    """Geometry and provenance of one brick.

    Args:
        volume: Id of its scan.
        entry: What is known of it.
        box: Of the brick.
        chunk: Voxels along z, y, x of a chunk.
        pack: Hash of the settings that it is cut under.
        coarse: Whether coarser levels of its scan are in the same tar.
    """
    start = tuple(low for low, _ in box)
    z, y, x = (high - low for low, high in box)
    affine = np.asarray(entry.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ start
    return BrickInfo(
        volume=volume,
        subject=entry.subject,
        start=(start[0], start[1], start[2]),
        shape=(z, y, x),
        chunk=chunk,
        dtype=entry.dtype,
        spacing=entry.spacing,
        affine=tuple(tuple(row) for row in affine.tolist()),
        modality=entry.modality,
        slope=entry.slope,
        intercept=entry.intercept,
        percentiles=dict(entry.percentiles),
        scan=entry.shape if coarse else None,
        ingest=entry.ingest,
        pack=pack,
        **_body_in(entry, box),
    )


def _body_in(entry: Entry, box: Box) -> dict[str, Any]:
    """The cells of a scan's occupancy grid that a brick touches."""
    known = entry.occupancy
    if known is None:
        return {}
    cells = tuple(slice(low // cell, -(-high // cell)) for (low, high), cell in zip(box, known.cell, strict=True))
    lead = tuple(low % cell for (low, _), cell in zip(box, known.cell, strict=True))
    return {"occupancy": known.part(cells), "lead": lead}
