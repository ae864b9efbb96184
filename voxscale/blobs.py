"""Files as blobs of bytes: held in memory, mapped, or read by ranges, neighbours together."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voxscale.errors import DataError

Bytes = bytes | memoryview


class Blob(Protocol):
    """The bytes of one shard."""

    @property
    def size(self) -> int | None:
        """How many; None if nobody asked yet."""
        ...

    @property
    def gap(self) -> int:
        """Bytes between two ranges up to which they are read as one."""
        ...

    def tail(self, length: int) -> Bytes:
        """The last bytes, fewer if there are no more."""
        ...

    def whole(self) -> Bytes | None:
        """All of them, if that costs nothing until they are used."""
        ...

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from one offset to another, of each pair; fewer where the file ends before."""
        ...


class Held:
    """Bytes in memory."""

    gap = 0

    def __init__(self, data: Bytes) -> None:
        self._data, self.size = data, len(data)

    def tail(self, length: int) -> Bytes:
        """The last bytes."""
        return self._data[max(0, self.size - length) :]

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

    gap = 1 << 18

    def __init__(self, path: Path) -> None:
        self._path, self.size = path, path.stat().st_size

    def tail(self, length: int) -> bytes:
        """The last bytes."""
        return self.ranges([(max(0, self.size - length), self.size)])[0]

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


def parts_of(blob: Blob, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, neighbours read together.

    Raises:
        DataError: With reason `corrupt` if the file ends before.
    """
    buffer = blob.whole()
    bases: Sequence[int] = [0] * len(wanted)
    if buffer is None:
        joined, found = join([start for start, _ in wanted], [stop for _, stop in wanted], blob.gap)
        buffer, bases = b"".join(exact_ranges(blob, joined)), found.tolist()
    parts = [bytes(buffer[start + base : stop + base]) for (start, stop), base in zip(wanted, bases, strict=True)]
    if any(len(part) != stop - start for part, (start, stop) in zip(parts, wanted, strict=True)):
        raise DataError("file must hold all of its bytes, not be cut", "corrupt")
    return parts


def exact_ranges(blob: Blob, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
    """Ranges of a file, each complete.

    Raises:
        DataError: With reason `corrupt` if the file ends before.
    """
    parts = blob.ranges(wanted)
    if any(len(part) != stop - start for part, (start, stop) in zip(parts, wanted, strict=True)):
        raise DataError("file must hold all of its bytes, not be cut", "corrupt")
    return parts


def join(starts: Sequence[int], stops: Sequence[int], gap: int) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Ranges that cover others, neighbours joined, and what to add to a place to find it in all of them in a row."""
    joined: list[list[int]] = []
    bases = np.empty(len(starts), dtype=np.int64)
    length = 0
    for place in np.argsort(np.asarray(starts), kind="stable").tolist():
        start, stop = starts[place], stops[place]
        if not joined or start > joined[-1][1] + gap:
            length += joined[-1][1] - joined[-1][0] if joined else 0
            joined.append([start, stop])
        joined[-1][1] = max(joined[-1][1], stop)
        bases[place] = length - joined[-1][0]
    return [(start, stop) for start, stop in joined], bases
