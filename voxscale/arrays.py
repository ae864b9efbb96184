"""Zarr v3 sharded arrays of a store: how they are cut and coded, and writing them as zarr-python does.

The cut is a function of shape and number type alone, so a reader needs no
metadata file. Chunks and codec were chosen from measurements, which
docs/results/chunk_codec.md has with others: bit planes of 16-bit numbers are
smaller than planes of bytes, and faster to pack and to unpack.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from voxscale.files import indented

# It makes a lock on first use, though without threads it never takes it. Made here, the server of reader processes has
# it before they are forked; made by each of them, a semaphore outlives every reader that is ended by SIGKILL.
numcodecs.blosc.use_threads = False
numcodecs.blosc.get_mutex()

CHUNK = 32
"""Voxels along an axis of an inner chunk: the unit that is decoded, and no larger than an occupancy cell."""
SHARD = 512
"""Voxels along an axis of a shard, at most: the unit that is a file."""
CHUNK_2D, SHARD_2D = 256, 2048
"""The same for 2D images."""
LEVEL, LEVEL_16 = 5, 1
"""Compression level of LZ4HC; for 16-bit numbers the lowest, which packs nearly as tight six times as fast."""

NUMBERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32")
"""Number types of a store, see `voxscale.io.storage`."""

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
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    layout = layout_of(voxels.shape, voxels.dtype.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(indented(_metadata(layout, voxels), 2))
    colour = voxels.ndim == 4
    _write_shards(folder, layout, voxels[:, 0] if colour else voxels, colour)


def _metadata(layout: Layout, voxels: NDArray[Any]) -> dict[str, Any]:
    """What zarr-python writes for the same array, without the event loop that it does so in."""
    colour, kind = voxels.ndim == 4, voxels.dtype
    chunk, shard = ([part[0], 1, *part[1:]] if colour else list(part) for part in (layout.chunk, layout.shard))
    level, planes = (LEVEL_16, "bitshuffle") if kind.itemsize == 2 else (LEVEL, "shuffle")
    blosc = {"typesize": kind.itemsize, "cname": "lz4hc", "clevel": level, "shuffle": planes, "blocksize": 0}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    crc32c = {"name": "crc32c"}
    inner = [
        little if kind.itemsize > 1 else {"name": "bytes"},
        {"name": "blosc", "configuration": blosc},
        crc32c,
    ]
    sharding = {"chunk_shape": chunk, "codecs": inner, "index_codecs": [little, crc32c], "index_location": "end"}
    return {
        "shape": list(voxels.shape),
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if kind.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["c", "z", "y", "x"] if colour else ["z", "y", "x"],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _write_shards(folder: Path, layout: Layout, voxels: NDArray[Any], colour: bool) -> None:
    """Write the shards that zarr-python writes, without what it does around each chunk."""
    size = voxels.dtype.itemsize
    level, planes = (LEVEL_16, numcodecs.blosc.BITSHUFFLE) if size == 2 else (LEVEL, numcodecs.blosc.SHUFFLE)
    counts = [-(-n // s) for n, s in zip(layout.shape, layout.shard, strict=True)]
    for z, y, x in np.ndindex(*counts):
        start = [place * s for place, s in zip((z, y, x), layout.shard, strict=True)]
        file = folder / "c" / str(z) / ("0" if colour else "") / str(y) / str(x)
        file.parent.mkdir(parents=True, exist_ok=True)
        lengths: list[int] = []
        with file.open("wb") as out:
            for inner in np.ndindex(*layout.per_shard):
                begin = [a + k * c for a, k, c in zip(start, inner, layout.chunk, strict=True)]
                frame = numcodecs.blosc.compress(cut_chunk(voxels, begin, layout.chunk), b"lz4hc", level, planes, 0)
                lengths.append(out.write(frame) + out.write(struct.pack("<I", google_crc32c.value(frame))))
            out.write(_index(layout, lengths))


def cut_chunk(voxels: NDArray[Any], begin: Sequence[int], chunk: Three) -> NDArray[Any]:
    """The chunk that begins at a voxel, its rows in one piece; zeros where the array ends before."""
    whole = voxels[tuple(slice(a, a + c) for a, c in zip(begin, chunk, strict=True))]
    if whole.shape != chunk:
        whole, part = np.zeros(chunk, dtype=voxels.dtype), whole
        whole[tuple(slice(n) for n in part.shape)] = part
    return np.ascontiguousarray(whole)


def encode_shard(layout: Layout, chunks: Sequence[bytes]) -> bytes:
    """Join encoded chunks, in C order of one shard, into a shard."""
    return b"".join([*chunks, _index(layout, [len(chunk) for chunk in chunks])])


def _index(layout: Layout, lengths: Sequence[int]) -> bytes:
    """The end of a shard: where each chunk begins, its length, and a checksum of these."""
    sizes = np.array(lengths, dtype="<u8")
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype("<u8")
    index = np.stack([offsets, sizes], axis=1).astype("<u8").tobytes()
    assert len(index) == layout.index_bytes - 4
    return index + struct.pack("<I", google_crc32c.value(index))


def chunk_bytes(folder: Path) -> int:
    """Size of all chunk files of one scan and its labels, at all levels."""
    return sum(file.stat().st_size for file in folder.rglob("c/**/*") if file.is_file())
