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
_PLACE = np.dtype([("offset", "i8"), ("bytes", "i8"), ("from", "i8", 3), ("to", "i8", 3), ("count", "i8", 3)])


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
    layout: Layout,
    shard: Callable[[tuple[int, int, int]], Shard],
    box: Box,
    as_float: bool = False,
    parts: Sequence[Box] | None = None,
) -> NDArray[Any]:
    """Decode a box.

    Args:
        layout: How the array is cut.
        shard: Opens the shard at a place of the grid of shards.
        box: Half-open index ranges along three axes, inside the array and not empty.
        as_float: Whether to convert 8- and 16-bit numbers to float32 on the way.
        parts: Boxes inside the box that are all that will be looked at; None means all of it.

    Returns:
        The box in the array's number type, or float32; of any content where no part is.

    Raises:
        DataError: With reason `corrupt` if a byte that is needed is missing or differs from what was written.
    """
    out = buffers.empty([b - a for a, b in box], np.float32 if as_float else layout.dtype)
    spans = [range(a // s, (b - 1) // s + 1) for (a, b), s in zip(box, layout.shard, strict=True)]
    for place in itertools.product(*spans):
        opened = shard((place[0], place[1], place[2]))
        places = _places(layout, opened.index, place, box, parts)
        if not len(places):
            continue
        # A missing chunk has -1 for both; beyond the array's end that is how it must be, inside it is damage.
        ends = places["offset"] + places["bytes"]
        size = opened.blob.size
        last = np.iinfo(np.int64).max if size is None else size - layout.index_bytes  # else a short read will tell
        inside = (places["offset"] >= 0) & (places["bytes"] >= LEAST) & (ends >= 0) & (ends <= last)
        if not inside.all():
            raise DataError("shard must hold all of its chunks", "corrupt")
        _decode(layout, opened.blob, places, out)
    return out


def _places(
    layout: Layout, index: NDArray[np.int64], shard: Sequence[int], box: Box, parts: Sequence[Box] | None
) -> NDArray[np.void]:
    """Of each chunk of one shard that a box touches: where it is, and which part of it goes where in the box."""
    axes: list[tuple[NDArray[np.int64], ...]] = []
    for (low, high), edge, chunk, place, n in zip(
        box, layout.shard, layout.chunk, shard, layout.per_shard, strict=True
    ):
        base = place * edge
        first = max(low - base, 0) // chunk
        last = min((high - base - 1) // chunk, n - 1)
        number = np.arange(first, last + 1)
        start = base + number * chunk
        begin, end = np.maximum(low, start), np.minimum(high, start + chunk)
        axes.append((number, begin - start, begin - low, end - begin))
    shape = [len(axis[0]) for axis in axes]
    z, y, x = np.ix_(*(axis[0] for axis in axes))
    flat = ((z * layout.per_shard[1] + y) * layout.per_shard[2] + x).reshape(-1)
    places = np.empty(len(flat), dtype=_PLACE)
    places["offset"], places["bytes"] = index[flat, 0], index[flat, 1]
    for column, name in enumerate(("from", "to", "count"), 1):
        for number, axis in enumerate(axes):
            along = axis[column].reshape([-1 if number == k else 1 for k in range(3)])
            places[name][:, number] = np.broadcast_to(along, shape).reshape(-1)
    return places if parts is None else places[_touched(layout, shard, [axis[0] for axis in axes], parts)]


def _touched(
    layout: Layout, shard: Sequence[int], numbers: Sequence[NDArray[np.int64]], parts: Sequence[Box]
) -> NDArray[np.bool_]:
    """Which chunks of a shard, given by their numbers along each axis, any of the boxes touches."""
    touched = np.zeros([len(axis) for axis in numbers], dtype=bool)
    for part in parts:
        spans: list[slice] = []
        for (low, high), edge, chunk, place, axis in zip(part, layout.shard, layout.chunk, shard, numbers, strict=True):
            first, last = (low - place * edge) // chunk, (high - 1 - place * edge) // chunk
            spans.append(slice(max(first - int(axis[0]), 0), max(last + 1 - int(axis[0]), 0)))
        touched[tuple(spans)] = True
    return touched.reshape(-1)


def _decode(layout: Layout, blob: Blob, places: NDArray[np.void], out: NDArray[Any]) -> None:
    """Decode chunks into a box."""
    buffer = blob.whole()
    if buffer is None:
        buffer = _gather(blob, places)
    native = library()
    if native is None or (out.dtype != layout.dtype and np.dtype(layout.dtype).name not in _TO_FLOAT):
        _decode_plain(layout, buffer, places, out)
        return
    kind = np.dtype(layout.dtype)
    data = np.frombuffer(buffer, dtype=np.uint8)
    chunk, shape = np.array(layout.chunk, dtype=np.int64), np.array(out.shape, dtype=np.int64)
    to_float = int(out.dtype == np.float32 and kind != np.float32)
    code = native.read_chunks(
        data.ctypes.data, places.ctypes.data, len(places), chunk.ctypes.data, kind.kind.encode(), kind.itemsize,
        to_float, out.ctypes.data, shape.ctypes.data,
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


def _gather(blob: Blob, places: NDArray[np.void]) -> bytes:
    """Read the chunks of a box, neighbours together, and point the places at what was read."""
    starts = places["offset"].tolist()
    joined, bases = join(starts, (places["offset"] + places["bytes"]).tolist(), blob.gap)
    parts = exact_ranges(blob, joined)
    places["offset"] += bases
    return b"".join(parts)


def _decode_plain(layout: Layout, buffer: Bytes, places: NDArray[np.void], out: NDArray[Any]) -> None:
    """The same in Python, chunk by chunk."""
    view = memoryview(buffer)
    for place in places:
        start, size = int(place["offset"]), int(place["bytes"])
        frame, stored = bytes(view[start : start + size - 4]), bytes(view[start + size - 4 : start + size])
        if google_crc32c.value(frame) != struct.unpack("<I", stored)[0]:
            raise DataError("chunk must have the checksum it was written with", "corrupt")
        try:
            raw = numcodecs.blosc.decompress(frame)
        except RuntimeError:
            raise DataError("chunk must be a Blosc frame", "corrupt") from None
        if len(raw) != layout.chunk_bytes:
            raise DataError("chunk must hold as many voxels as its array says", "corrupt")
        chunk = np.frombuffer(raw, dtype=layout.dtype).reshape(layout.chunk)
        source, target = (
            tuple(slice(int(a), int(a + n)) for a, n in zip(place[name], place["count"], strict=True))
            for name in ("from", "to")
        )
        out[target] = chunk[source]


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
