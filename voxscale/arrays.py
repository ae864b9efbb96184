"""Zarr v3 sharded arrays of a store: how they are cut, coded and written."""

from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

CHUNK = 32
"""Voxels along an axis of an inner chunk: the unit that is decoded."""
SHARD = 256
"""Voxels along an axis of a shard, at most: the unit that is a file."""
CHUNK_2D, SHARD_2D = 256, 2048
"""The same for 2D images."""


def write_array(folder: Path, voxels: NDArray[Any]) -> None:
    """Write one sharded array; empty chunks too, so that a missing one is always damage."""
    chunk, shard = (CHUNK, SHARD) if voxels.shape[-3] > 1 else (CHUNK_2D, SHARD_2D)
    chunks = tuple(min(chunk, n) for n in voxels.shape)
    shards = tuple(min(-(-n // c) * c, shard // c * c) for n, c in zip(voxels.shape, chunks, strict=True))
    array = zarr.create_array(
        store=folder,
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=chunks,
        shards=shards,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=("z", "y", "x") if voxels.ndim == 3 else ("c", "z", "y", "x"),
        config={"write_empty_chunks": True},
    )
    array[...] = voxels


def chunk_bytes(folder: Path) -> int:
    """Size of all chunk files of one scan and its label."""
    return sum(
        file.stat().st_size
        for part in ("0/c", "labels/task/0/c", "labels/removed/0/c")
        for file in (folder / part).rglob("*")
        if file.is_file()
    )
