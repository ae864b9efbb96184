"""The lines of a ledger on disk, with what is needed of each in memory."""

import hashlib
import json
import os
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxscale.errors import DataError
from voxscale.files import replacing

FLUSH_S = 10.0
"""Least seconds between two rewritings of the file for rows that were replaced; a new row is written at once."""
FLUSH_SHARE = 0.1
"""Most of the time that is spent on rewriting."""
FLUSH_ROWS = 4096
"""Replaced rows that are held in memory at most."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What many rows of a ledger have in common."""

    kind: str
    status: str
    rule: str | None
    thumbnail: bool


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as it stands in the file."""
    return json.dumps(row).encode() + b"\n"


def digest_of(line: bytes) -> int:
    """48 bits of the hash of a line."""
    return int.from_bytes(hashlib.blake2b(line, digest_size=6).digest(), "big")


LEDGER_FIELDS: Mapping[str, type] = {"id": str, "kind": str, "status": str, "thumbnail": bool}


def lines_of(path: Path, mend: bool, fields: Mapping[str, type]) -> Iterator[tuple[int, bytes, Row]]:
    """Offset, bytes and values of every line; a last one cut by a crash is left out, and taken away if `mend`.

    Args:
        path: Ledger or list of sources.
        mend: Whether it may be changed.
        fields: What each row must have, by name and type.

    Raises:
        DataError: With reason `corrupt` if any other line is not JSON, or any line no row.
    """
    if not path.exists():
        return
    offset, size = 0, path.stat().st_size
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError
                row = json.loads(line)
            except ValueError:
                if offset + len(line) < size:
                    raise _damaged(path, number) from None
                if mend:
                    os.truncate(path, offset)
                return
            if not (isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in fields.items())):
                raise _damaged(path, number)
            yield offset, line, row
            offset += len(line)


def _damaged(path: Path, number: int) -> DataError:
    return DataError(
        f"{path.name} line {number} must be as it was written; remove the file and ingest again", "corrupt"
    )


class Rows:
    """The rows of a ledger in their order: 26 bytes each in memory, the rest on disk.

    Raises:
        DataError: If the file is damaged.
    """

    def __init__(self, path: Path, mend: bool) -> None:
        self._path = path
        self._ids, self._digests = array("Q"), array("Q")
        self._offsets, self._codes = array("Q"), array("H")
        self._verdicts: list[Verdict] = []
        self._numbers: dict[Verdict, int] = {}
        self._new: dict[int, bytes] = {}
        self._flushed, self._pause = time.monotonic(), FLUSH_S
        self._handle = -1
        self._end = 0
        self._lock = threading.RLock()  # readers of rows and the writer are threads of one process
        for number, (offset, line, row) in enumerate(lines_of(path, mend, LEDGER_FIELDS), 1):
            try:
                self._put(len(self._ids), row, line)
            except (KeyError, ValueError, OverflowError, TypeError):
                raise _damaged(path, number) from None
            self._offsets.append(offset)
            self._end = offset + len(line)

    def __len__(self) -> int:
        return len(self._ids)

    def _put(self, place: int, row: Row, line: bytes) -> None:
        verdict = Verdict(row["kind"], row["status"], row["rule"], bool(row["thumbnail"]))
        if verdict not in self._numbers:
            self._numbers[verdict] = len(self._verdicts)
            self._verdicts.append(verdict)
        values = (int(row["id"] or "0", 16), digest_of(line), self._numbers[verdict])
        for column, value in zip((self._ids, self._digests, self._codes), values, strict=True):
            if place == len(column):
                column.append(value)
            else:
                column[place] = value

    def key(self, place: int) -> str:
        """Id in a row; empty if it has none."""
        return f"{self._ids[place]:016x}" if self._ids[place] else ""

    def number(self, place: int) -> int:
        """The id as a number, which takes less memory."""
        return self._ids[place]

    def verdict(self, place: int) -> Verdict:
        """Kind, status and rule of a row."""
        return self._verdicts[self._codes[place]]

    def digest(self, place: int) -> int:
        """Hash of a row."""
        return self._digests[place]

    def row(self, place: int) -> Row:
        """A whole row, from disk."""
        with self._lock:
            return json.loads(self._line(place))

    def _line(self, place: int) -> bytes:
        if place in self._new:
            return self._new[place]
        if self._handle < 0:
            self._handle = os.open(self._path, os.O_RDONLY)
        end = self._offsets[place + 1] if place + 1 < len(self._offsets) else self._end
        return os.pread(self._handle, end - self._offsets[place], self._offsets[place])

    def append(self, row: Row) -> None:
        """Write a new row to the end."""
        line = line_of(row)
        with self._path.open("ab") as handle:
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        with self._lock:
            self._put(len(self._ids), row, line)
            self._offsets.append(self._end)
            self._end += len(line)

    def replace(self, place: int, row: Row) -> None:
        """Put a row in the place of another; on disk only after a while, or by `flush`."""
        with self._lock:
            self._new[place] = line_of(row)
            self._put(place, row, self._new[place])
        if len(self._new) >= FLUSH_ROWS or time.monotonic() - self._flushed > self._pause:
            self.flush()

    def flush(self) -> None:
        """Write rows that were replaced: the file is copied line by line."""
        if not self._new:
            return
        began, end = time.monotonic(), 0
        offsets = array("Q")
        with self._lock:
            with replacing(self._path) as handle:
                for place in range(len(self)):
                    line = self._line(place)
                    handle.write(line)
                    offsets.append(end)
                    end += len(line)
            if self._handle >= 0:
                os.close(self._handle)
            self._handle, self._offsets, self._end = -1, offsets, end
            self._new.clear()
        self._flushed = time.monotonic()
        self._pause = max(FLUSH_S, (self._flushed - began) / FLUSH_SHARE)
