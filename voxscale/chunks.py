"""Reading boxes out of Zarr v3 shards, by mapped memory or by ranges, every byte checked before it is used."""

import itertools
import mmap
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import Layout, one_shard
from voxscale.errors import DataError
from voxscale.kernel import library

GAP = 1 << 18
"""Bytes between two ranges of one file up to which they are read as one."""
LEAST = 20
"""Bytes of the shortest chunk: the header of a Blosc frame and the checksum."""

Box = Sequence[tuple[int, int]]
Bytes = bytes | memoryview

_PLACE = np.dtype([("offset", "i8"), ("bytes", "i8"), ("from", "i8", 3), ("to", "i8", 3), ("count", "i8", 3)])


class Blob(Protocol):
    """The bytes of one shard."""

    @property
    def size(self) -> int:
        """How many."""
        ...

    def whole(self) -> Bytes | None:
        """All of them, if that costs nothing until they are used."""
        ...

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from one offset to another, of each pair; fewer where the file ends before."""
        ...


class Held:
    """Bytes in memory."""

    def __init__(self, data: Bytes) -> None:
        self._data, self.size = data, len(data)

    def whole(self) -> Bytes:
        """All of them."""
        return self._data

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of them."""
        return [bytes(self._data[start:stop]) for start, stop in wanted]


class Mapped(Held):
    """A local file mapped into memory; it must not be cut while it is open, stores only ever replace files."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle:
            empty = path.stat().st_size == 0
            super().__init__(b"" if empty else memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)))


class Ranged:
    """A file that is read by ranges, for network file systems, where a mapped file can end a process by a signal."""

    def __init__(self, path: Path) -> None:
        self._path, self.size = path, path.stat().st_size

    def whole(self) -> None:
        """Not without reading it."""
        return

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of it."""
        with self._path.open("rb", buffering=0) as handle:
            return [_read(handle, start, stop - start) for start, stop in wanted]


def _read(handle: Any, offset: int, size: int) -> bytes:
    handle.seek(offset)
    parts: list[bytes] = []
    while size > 0 and (part := handle.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


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
    if blob.size < length:
        raise DataError("shard must end with an index, not be cut", "corrupt")
    whole = blob.whole()
    tail = whole[blob.size - length :] if whole is not None else blob.ranges([(blob.size - length, blob.size)])[0]
    tail = bytes(tail)
    if len(tail) != length or google_crc32c.value(tail[:-4]) != struct.unpack("<I", tail[-4:])[0]:
        raise DataError("shard must have the index it was written with", "corrupt")
    return Shard(blob, np.frombuffer(tail[:-4], dtype="<u8").reshape(-1, 2).astype(np.int64))


def read_box(
    layout: Layout, shard: Callable[[tuple[int, int, int]], Shard], box: Box, as_float: bool = False
) -> NDArray[Any]:
    """Decode a box.

    Args:
        layout: How the array is cut.
        shard: Opens the shard at a place of the grid of shards.
        box: Half-open index ranges along three axes, inside the array and not empty.
        as_float: Whether to convert 8- and 16-bit numbers to float32 on the way.

    Returns:
        The box in the array's number type, or float32.

    Raises:
        DataError: With reason `corrupt` if a byte that is needed is missing or differs from what was written.
    """
    out = np.empty([b - a for a, b in box], dtype=np.float32 if as_float else layout.dtype)
    spans = [range(a // s, (b - 1) // s + 1) for (a, b), s in zip(box, layout.shard, strict=True)]
    for place in itertools.product(*spans):
        opened = shard((place[0], place[1], place[2]))
        places = _places(layout, opened.index, place, box)
        # A missing chunk has -1 for both; beyond the array's end that is how it must be, inside it is damage.
        ends = places["offset"] + places["bytes"]
        inside = (places["offset"] >= 0) & (places["bytes"] >= LEAST) & (ends <= opened.blob.size - layout.index_bytes)
        if not inside.all():
            raise DataError("shard must hold all of its chunks", "corrupt")
        _decode(layout, opened.blob, places, out)
    return out


def _places(layout: Layout, index: NDArray[np.int64], shard: Sequence[int], box: Box) -> NDArray[np.void]:
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
    return places


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
    side_by_side = min(len(places), -(-out.shape[2] // layout.chunk[2]) + 1)
    scratch = np.empty(side_by_side * layout.chunk_bytes, dtype=np.uint8)
    to_float = int(out.dtype == np.float32 and kind != np.float32)
    code = native.read_chunks(
        data.ctypes.data, places.ctypes.data, len(places), chunk.ctypes.data, kind.kind.encode(), kind.itemsize,
        to_float, out.ctypes.data, shape.ctypes.data, scratch.ctypes.data, side_by_side,
    )  # fmt: skip
    if code:
        raise DataError("chunk must have the checksum it was written with", "corrupt")


_TO_FLOAT = ("int8", "uint8", "int16", "uint16", "float32")


def _gather(blob: Blob, places: NDArray[np.void]) -> bytes:
    """Read the chunks of a box, neighbours together, and point the places at what was read."""
    order = np.argsort(places["offset"], kind="stable")
    wanted: list[list[int]] = []
    bases = np.empty(len(places), dtype=np.int64)
    length = 0
    for row in order:
        start = int(places["offset"][row])
        stop = start + int(places["bytes"][row])
        if not wanted or start > wanted[-1][1] + GAP:
            length += wanted[-1][1] - wanted[-1][0] if wanted else 0
            wanted.append([start, stop])
        wanted[-1][1] = max(wanted[-1][1], stop)
        bases[row] = length - wanted[-1][0]
    parts = blob.ranges([(start, stop) for start, stop in wanted])
    if any(len(part) != stop - start for part, (start, stop) in zip(parts, wanted, strict=True)):
        raise DataError("shard must hold all of its bytes, not be cut", "corrupt")
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
    chunks: list[bytes] = []
    for number in itertools.product(*spans):
        place = [n // k for n, k in zip(number, layout.per_shard, strict=True)]
        z, y, x = (n % k for n, k in zip(number, layout.per_shard, strict=True))
        opened = shard((place[0], place[1], place[2]))
        offset, size = opened.index[(z * layout.per_shard[1] + y) * layout.per_shard[2] + x].tolist()
        if offset < 0 or size < LEAST:
            raise DataError("shard must hold all of its chunks", "corrupt")
        chunk = bytes(part_of(opened.blob, offset, offset + size).whole())
        if google_crc32c.value(chunk[:-4]) != struct.unpack("<I", chunk[-4:])[0]:
            raise DataError("chunk must have the checksum it was written with", "corrupt")
        chunks.append(chunk)
    z, y, x = (b - a for a, b in box)
    cut = one_shard((z, y, x), layout.chunk, layout.dtype)
    return cut, encode_shard(cut, chunks)


def part_of(blob: Blob, start: int, stop: int) -> Held:
    """The bytes of a file from one offset to another; mapped ones are not copied.

    Raises:
        DataError: With reason `corrupt` if the file ends before.
    """
    whole = blob.whole()
    data = whole[start:stop] if whole is not None else blob.ranges([(start, stop)])[0]
    if len(data) != stop - start:
        raise DataError("file must be as long as its index says, not cut", "corrupt")
    return Held(data)


def encode_shard(layout: Layout, chunks: Sequence[bytes]) -> bytes:
    """Join encoded chunks, in C order of one shard, into a shard."""
    lengths = np.array([len(chunk) for chunk in chunks], dtype="<u8")
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype("<u8")
    index = np.stack([offsets, lengths], axis=1).astype("<u8").tobytes()
    assert len(index) == layout.index_bytes - 4
    return b"".join([*chunks, index, struct.pack("<I", google_crc32c.value(index))])
