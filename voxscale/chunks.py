"""Reading boxes out of Zarr v3 shards, by mapped memory or by ranges, every byte checked before it is used."""

import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from voxscale import buffers
from voxscale.arrays import Layout, encode_shard, one_shard
from voxscale.blobs import Blob, Bytes, exact_ranges, join, parts_of
from voxscale.errors import DataError
from voxscale.kernel import library

LEAST = 20
"""Bytes of the shortest chunk: the header of a Blosc frame and the checksum."""

Box = Sequence[tuple[int, int]]
_CHUNK = np.dtype([("offset", "i8"), ("bytes", "i8"), ("start", "i8", 3)])
_TARGET = np.dtype([("voxels", "u8"), ("low", "i8", 3), ("shape", "i8", 3)])


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard whose index has been read and checked.

    Attributes:
        blob: Its bytes.
        index: (chunks, 2) offset and length of each chunk, in C order.
    """

    blob: Blob
    index: NDArray[np.int64]


def open_shard(blob: Blob, layout: Layout) -> Shard:
    """Read and check the index of a shard.

    Raises:
        DataError: With reason `corrupt` if it is cut or changed.
    """
    length = layout.index_bytes
    tail = bytes(blob.tail(length))
    if len(tail) != length or google_crc32c.value(tail[:-4]) != struct.unpack("<I", tail[-4:])[0]:
        raise DataError("shard must have the index it was written with", "corrupt")
    return Shard(blob, np.frombuffer(tail[:-4], dtype="<u8").reshape(-1, 2).astype(np.int64))


def read_box(
    layout: Layout, shard: Callable[[tuple[int, int, int]], Shard], box: Box, as_float: bool = False
) -> NDArray[Any]:
    """Decode a box; see `read_boxes`."""
    return read_boxes(layout, shard, [box], as_float)[0]


def read_boxes(
    layout: Layout, shard: Callable[[tuple[int, int, int]], Shard], boxes: Sequence[Box], as_float: bool = False
) -> list[NDArray[Any]]:
    """Decode boxes that may overlap, each chunk that they touch once.

    Args:
        layout: How the array is cut.
        shard: Opens the shard at a place of the grid of shards.
        boxes: Half-open index ranges along three axes, inside the array and not empty.
        as_float: Whether to convert 8- and 16-bit numbers to float32 on the way.

    Returns:
        Each box, in memory of its own, in the array's number type or float32.

    Raises:
        DataError: With reason `corrupt` if a byte that is needed is missing or differs from what was written.
    """
    kind = np.float32 if as_float else layout.dtype
    out = [buffers.empty([b - a for a, b in box], kind) for box in boxes]
    around = [(min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*boxes, strict=True)]
    spans = [range(a // s, (b - 1) // s + 1) for (a, b), s in zip(around, layout.shard, strict=True)]
    for place in itertools.product(*spans):
        opened = shard((place[0], place[1], place[2]))
        chunks = _touched(layout, opened.index, place, around, boxes)
        if not len(chunks):
            continue
        # A missing chunk has -1 for both; beyond the array's end that is how it must be, inside it is damage.
        ends = chunks["offset"] + chunks["bytes"]
        size = opened.blob.size
        last = np.iinfo(np.int64).max if size is None else size - layout.index_bytes  # else a short read will tell
        inside = (chunks["offset"] >= 0) & (chunks["bytes"] >= LEAST) & (ends >= 0) & (ends <= last)
        if not inside.all():
            raise DataError("shard must hold all of its chunks", "corrupt")
        _decode(layout, opened.blob, chunks, boxes, out)
    return out


def _touched(
    layout: Layout, index: NDArray[np.int64], shard: Sequence[int], around: Box, boxes: Sequence[Box]
) -> NDArray[np.void]:
    """Where the chunks of one shard are that any box touches, and their first voxels, in C order."""
    firsts: list[int] = []
    numbers: list[NDArray[np.int64]] = []
    for (low, high), edge, chunk, place, n in zip(
        around, layout.shard, layout.chunk, shard, layout.per_shard, strict=True
    ):
        firsts.append(max(low - place * edge, 0) // chunk)
        numbers.append(np.arange(firsts[-1], min((high - place * edge - 1) // chunk, n - 1) + 1))
    touched = np.zeros([len(axis) for axis in numbers], dtype=bool)
    for box in boxes:
        spans: list[slice] = []
        for (low, high), edge, chunk, place, first in zip(box, layout.shard, layout.chunk, shard, firsts, strict=True):
            begin, end = (low - place * edge) // chunk, (high - 1 - place * edge) // chunk
            spans.append(slice(max(begin - first, 0), max(end + 1 - first, 0)))
        touched[tuple(spans)] = True
    at = [axis[found] for axis, found in zip(numbers, np.nonzero(touched), strict=True)]
    flat = (at[0] * layout.per_shard[1] + at[1]) * layout.per_shard[2] + at[2]
    chunks = np.empty(len(flat), dtype=_CHUNK)
    chunks["offset"], chunks["bytes"] = index[flat, 0], index[flat, 1]
    for axis in range(3):
        chunks["start"][:, axis] = at[axis] * layout.chunk[axis] + shard[axis] * layout.shard[axis]
    return chunks


def _decode(
    layout: Layout, blob: Blob, chunks: NDArray[np.void], boxes: Sequence[Box], out: Sequence[NDArray[Any]]
) -> None:
    """Decode chunks into the boxes."""
    buffer = blob.whole()
    if buffer is None:
        buffer = _gather(blob, chunks)
    native = library()
    kind, made = np.dtype(layout.dtype), out[0].dtype
    if native is None or (made != kind and kind.name not in _TO_FLOAT):
        _decode_plain(layout, buffer, chunks, boxes, out)
        return
    data = np.frombuffer(buffer, dtype=np.uint8)
    told = [(each.ctypes.data, [a for a, _ in box], each.shape) for box, each in zip(boxes, out, strict=True)]
    targets = np.array(told, dtype=_TARGET)
    edges = np.array(layout.chunk, dtype=np.int64)
    code = native.read_chunks(
        data.ctypes.data, chunks.ctypes.data, len(chunks), edges.ctypes.data, kind.kind.encode(), kind.itemsize,
        int(made == np.float32 and kind != np.float32), targets.ctypes.data, len(targets),
    )  # fmt: skip
    if code:
        raise DataError("chunk must have the checksum it was written with", "corrupt")


def to_float(voxels: NDArray[Any]) -> NDArray[np.float32]:
    """A float32 copy of a box, such as a crop of a brick, in one pass.

    Args:
        voxels: (z, y, x) numbers; rows need not be next to one another.
    """
    native = library()
    known = voxels.dtype.name in _TO_FLOAT and voxels.dtype.isnative
    if native is None or not known or voxels.strides[2] != voxels.itemsize:
        return voxels.astype(np.float32, order="C")
    out = buffers.empty(voxels.shape, np.float32)
    shape, strides = np.array(voxels.shape, dtype=np.int64), np.array(voxels.strides, dtype=np.int64)
    native.to_float(
        voxels.ctypes.data, shape.ctypes.data, strides.ctypes.data, voxels.dtype.kind.encode(), voxels.itemsize,
        out.ctypes.data,
    )  # fmt: skip
    return out


_TO_FLOAT = ("int8", "uint8", "int16", "uint16", "float32")


def _gather(blob: Blob, chunks: NDArray[np.void]) -> bytes:
    """Read chunks, neighbours together, and make their offsets those in what was read."""
    starts = chunks["offset"].tolist()
    joined, bases = join(starts, (chunks["offset"] + chunks["bytes"]).tolist(), blob.gap)
    parts = exact_ranges(blob, joined)
    chunks["offset"] += bases
    return b"".join(parts)


def _decode_plain(
    layout: Layout, buffer: Bytes, chunks: NDArray[np.void], boxes: Sequence[Box], out: Sequence[NDArray[Any]]
) -> None:
    """The same in Python, chunk by chunk."""
    view = memoryview(buffer)
    for chunk in chunks:
        start, size = int(chunk["offset"]), int(chunk["bytes"])
        frame, stored = bytes(view[start : start + size - 4]), bytes(view[start + size - 4 : start + size])
        if google_crc32c.value(frame) != struct.unpack("<I", stored)[0]:
            raise DataError("chunk must have the checksum it was written with", "corrupt")
        try:
            raw = numcodecs.blosc.decompress(frame)
        except RuntimeError:
            raise DataError("chunk must be a Blosc frame", "corrupt") from None
        if len(raw) != layout.chunk_bytes:
            raise DataError("chunk must hold as many voxels as its array says", "corrupt")
        voxels = np.frombuffer(raw, dtype=layout.dtype).reshape(layout.chunk)
        for box, target in zip(boxes, out, strict=True):
            common = [
                (int(max(low, first)), int(min(high, first + edge)), int(first), low)
                for (low, high), first, edge in zip(box, chunk["start"], layout.chunk, strict=True)
            ]
            if all(a < b for a, b, _, _ in common):
                source = tuple(slice(a - first, b - first) for a, b, first, _ in common)
                target[tuple(slice(a - low, b - low) for a, b, _, low in common)] = voxels[source]


def copy_chunks(layout: Layout, shard: Callable[[tuple[int, int, int]], Shard], box: Box) -> tuple[Layout, bytes]:
    """Cut a box out along the edges of chunks, as a shard of its own; nothing is decoded, all checksums are compared.

    Args:
        layout: How the array is cut.
        shard: Opens the shard at a place of the grid of shards.
        box: Half-open index ranges along three axes that begin and end at chunks, or end with the array.

    Returns:
        The layout of the new array, and its only shard.

    Raises:
        DataError: With reason `corrupt`, as `read_box`.
    """
    spans = [range(a // c, -(-b // c)) for (a, b), c in zip(box, layout.chunk, strict=True)]
    numbers = list(itertools.product(*spans))
    shards: dict[tuple[int, int, int], list[int]] = {}
    for which, number in enumerate(numbers):
        z, y, x = (n // k for n, k in zip(number, layout.per_shard, strict=True))
        shards.setdefault((z, y, x), []).append(which)
    chunks = [b""] * len(numbers)
    for place, members in shards.items():
        opened = shard(place)
        inside = [[n % k for n, k in zip(numbers[which], layout.per_shard, strict=True)] for which in members]
        rows = opened.index[[(z * layout.per_shard[1] + y) * layout.per_shard[2] + x for z, y, x in inside]]
        if (rows[:, 0] < 0).any() or (rows[:, 1] < LEAST).any():
            raise DataError("shard must hold all of its chunks", "corrupt")
        wanted = [(offset, offset + size) for offset, size in rows.tolist()]
        for which, chunk in zip(members, parts_of(opened.blob, wanted), strict=True):
            if google_crc32c.value(chunk[:-4]) != struct.unpack("<I", chunk[-4:])[0]:
                raise DataError("chunk must have the checksum it was written with", "corrupt")
            chunks[which] = chunk
    z, y, x = (b - a for a, b in box)
    cut = one_shard((z, y, x), layout.chunk, layout.dtype)
    return cut, encode_shard(cut, chunks)
