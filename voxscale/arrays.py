"""Zarr v3 sharded arrays of a store: how they are cut and coded, and writing them with zarr-python.

The cut is a function of shape and number type alone, so a reader needs no
metadata file. Chunks and codec were chosen from measurements that stand in
docs/results/chunk_codec.json: bit planes of 16-bit numbers are smaller than
planes of bytes, and faster to pack and to unpack.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

CHUNK = 32
"""Voxels along an axis of an inner chunk: the unit that is decoded, and no larger than an occupancy cell."""
SHARD = 512
"""Voxels along an axis of a shard, at most: the unit that is a file."""
CHUNK_2D, SHARD_2D = 256, 2048
"""The same for 2D images."""
LEVEL, LEVEL_16 = 5, 1
"""Compression level of LZ4HC; for 16-bit numbers the lowest, which packs nearly as tight six times as fast."""

Three = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is cut. A colour image (3, 1, y, x) is cut as if its one slice were its colours, (3, y, x).

    Attributes:
        shape: Voxels along three axes.
        chunk: Of a chunk; chunks at the far ends are padded to it.
        shard: Of a shard, a multiple of a chunk.
        dtype: Number type.
    """

    shape: Three
    chunk: Three
    shard: Three
    dtype: str

    @property
    def per_shard(self) -> Three:
        """Chunks of a shard along each axis."""
        z, y, x = (s // c for s, c in zip(self.shard, self.chunk, strict=True))
        return z, y, x

    @property
    def index_bytes(self) -> int:
        """Size of the index at a shard's end: offset and length of each chunk, and a checksum."""
        return 16 * math.prod(self.per_shard) + 4

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize


def layout_of(shape: tuple[int, ...], dtype: str) -> Layout:
    """The layout of an array of a store.

    Args:
        shape: (z, y, x), or (3, 1, y, x).
        dtype: Number type.
    """
    flat = shape if len(shape) == 3 else (shape[0], *shape[2:])
    planar = shape[-3] == 1
    chunk = tuple(min(CHUNK_2D if planar else CHUNK, n) for n in flat)
    shard = tuple(
        min(-(-n // c) * c, (SHARD_2D if planar else SHARD) // c * c) for n, c in zip(flat, chunk, strict=True)
    )
    return Layout(_three(flat), _three(chunk), _three(shard), np.dtype(dtype).name)


def one_shard(shape: Three, chunk: Three, dtype: str) -> Layout:
    """The layout of an array that is one shard, such as a brick."""
    return Layout(shape, chunk, _three(tuple(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))), dtype)


def _three(values: tuple[int, ...]) -> Three:
    z, y, x = values
    return z, y, x


def write_array(folder: Path, voxels: NDArray[Any]) -> None:
    """Write one sharded array, (z, y, x) or (3, 1, y, x); empty chunks too, so that a missing one is always damage."""
    layout = layout_of(voxels.shape, voxels.dtype.name)
    colour = voxels.ndim == 4
    chunk, shard = ((part[0], 1, *part[1:]) if colour else part for part in (layout.chunk, layout.shard))
    array = zarr.create_array(
        store=folder,
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=chunk,
        shards=shard,
        compressors=[
            _codec(voxels.dtype.itemsize),
            Crc32cCodec(),
        ],
        dimension_names=("c", "z", "y", "x") if colour else ("z", "y", "x"),
        config={"write_empty_chunks": True},
    )
    array[...] = voxels


def _codec(size: int) -> BloscCodec:
    """LZ4HC over bit planes for numbers of 16 bits, over planes of bytes for others."""
    if size == 2:
        return BloscCodec(cname="lz4hc", clevel=LEVEL_16, shuffle="bitshuffle", typesize=size)
    return BloscCodec(cname="lz4hc", clevel=LEVEL, shuffle="shuffle", typesize=size)


def chunk_bytes(folder: Path) -> int:
    """Size of all chunk files of one scan and its labels, at all levels."""
    return sum(file.stat().st_size for file in folder.rglob("c/**/*") if file.is_file())
