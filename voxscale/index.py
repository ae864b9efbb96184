"""The index of a store: a table of all accepted scans in Parquet parts, opened without reading them.

The ledger is the truth; the index is made from it at the end of every ingest,
see `voxscale.index_write`.
"""

import bisect
import io
import json
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voxscale.blobs import Blob
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.folder import Folder, open_folder
from voxscale.index_table import VERSION, Statistics, from_row, numbers

INDEX = "index/index.json"
ROWS = 1024
"""Rows of a row group: the unit that is read, and that streams shuffle as one."""
KEPT = 16
"""Row groups kept in memory once read."""


class _Part:
    """One part, whose end has been read and checked."""

    def __init__(self, folder: Folder, line: Mapping[str, Any]) -> None:
        name = f"index/{line['name']}"
        length, crc = line["footer"]
        try:
            blob = folder.blob(name, line["bytes"])
            tail = bytes(blob.tail(length))
        except OSError:
            raise _damaged(line["name"]) from None
        if blob.size != line["bytes"] or google_crc32c.value(tail) != crc:
            raise _damaged(line["name"])
        self.name, self.rows = str(line["name"]), int(line["rows"])
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail))
        told: dict[bytes, bytes] = metadata.metadata or {}
        self.groups: list[dict[str, int]] = json.loads(told[b"voxscale.groups"])
        self.statistics: dict[str, dict[str, Any]] = json.loads(told[b"voxscale.statistics"])
        self._file = pq.ParquetFile(
            pa.PythonFile(_File(blob, line["bytes"]), mode="r"), metadata=metadata, page_checksum_verification=True
        )

    def read(self, group: int, columns: list[str] | None) -> Any:
        """Some columns, or all, of a row group."""
        try:
            return self._file.read_row_group(group, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException):
            raise _damaged(self.name) from None


def _damaged(name: str) -> DataError:
    return DataError(f"index/{name} must be as index.json says, not missing, cut or changed; ingest again", "corrupt")


class _File(io.RawIOBase):
    """A blob as a file."""

    def __init__(self, blob: Blob, size: int) -> None:
        self._blob, self._size, self._at = blob, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._at + size)
        (data,) = self._blob.ranges([(self._at, stop)])
        self._at += len(data)
        return data


class Index(Mapping[str, Entry]):
    """The accepted scans of a store by id, in the order of the ledger; a row group is read when it is asked for.

    Args:
        store: The store, or its URL.

    Raises:
        DataError: With reason `corrupt` or `bad_schema`, when it is opened, or when a damaged row group is read.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        folder = open_folder(store, "range")
        try:
            told = json.loads(folder.read(INDEX))
            version, lines, self._rows = told["version"], told["parts"], int(told["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{INDEX} must be as it was written; ingest again", "corrupt") from None
        if version != VERSION:
            raise DataError(f"{INDEX} must be of version {VERSION}, not {version}; ingest again", "bad_schema")
        try:
            self._parts = [_Part(folder, line) for line in lines]
        except (ValueError, KeyError, TypeError, pa.ArrowException):
            raise DataError(f"{INDEX} must name parts as they were written; ingest again", "corrupt") from None
        ends = np.cumsum([len(part.groups) for part in self._parts]).tolist()
        self._first: list[int] = [0, *ends]
        self._table: Any = lru_cache(maxsize=KEPT)(self._whole)
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self._store,)  # open files stay in their process

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Of each modality."""
        found: dict[str, Statistics] = {}
        for part in self._parts:
            for modality, values in part.statistics.items():
                found.setdefault(modality, Statistics()).merge(Statistics(**values))
        return dict(sorted(found.items()))

    @property
    def groups(self) -> list[dict[str, int]]:
        """Volumes of each group, see `voxscale.entry.group_of`, in each row group."""
        return [counts for part in self._parts for counts in part.groups]

    def read(self, number: int, columns: list[str] | None) -> Any:
        """Some columns, or all, of a row group, as a table."""
        part = bisect.bisect_right(self._first, number) - 1
        return self._parts[part].read(number - self._first[part], columns)

    def _whole(self, number: int) -> Any:
        return self.read(number, None)

    def column(self, name: str) -> NDArray[Any]:
        """One column whole: (rows,), or (rows, n) for fixed lists; strings as objects."""
        return np.concatenate(
            [numbers(self.read(n, [name]).column(name)) for n in range(self._first[-1])] or [np.zeros(0)]
        )

    def __getitem__(self, key: str) -> Entry:
        group, row = divmod(self._row(key), ROWS)
        return from_row(self._table(group).slice(row, 1).to_pylist()[0])

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self._row(key) >= 0
        except KeyError:
            return False

    def _row(self, key: str) -> int:
        """Where an id stands; all ids are read when the first one is asked for."""
        if self._sorted is None:
            ids = np.concatenate([self.ids(n) for n in range(self._first[-1])] or [np.zeros(0, np.uint64)])
            order = np.argsort(ids, kind="stable")
            self._sorted = ids[order], order
        ids, order = self._sorted
        try:
            value = np.uint64(int(key, 16))
        except (ValueError, OverflowError):
            raise KeyError(key) from None
        place = int(np.searchsorted(ids, value, side="right")) - 1
        if place < 0 or ids[place] != value or key != f"{int(value):016x}":
            raise KeyError(key)
        return int(order[place])

    def ids(self, number: int) -> NDArray[np.uint64]:
        """Ids of a row group, as numbers."""
        text = "".join(self.read(number, ["id"]).column("id").to_pylist())
        return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)

    def __iter__(self) -> Iterator[str]:
        for number in range(self._first[-1]):
            yield from self.read(number, ["id"]).column("id").to_pylist()

    def __len__(self) -> int:
        return self._rows

    def stream(self) -> Iterator[tuple[str, Entry]]:
        """Ids and entries in order, each row group read once."""
        for number in range(self._first[-1]):
            for row in self.read(number, None).to_pylist():
                yield row["id"], from_row(row)

    def items(self) -> ItemsView[str, Entry]:
        """Ids and entries in order."""
        return _Items(self)

    def values(self) -> ValuesView[Entry]:
        """Entries in order."""
        return _Values(self)


class _Items(ItemsView[str, Entry]):
    _mapping: Index

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return self._mapping.stream()


class _Values(ValuesView[Entry]):
    _mapping: Index

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, entry in self._mapping.stream())
