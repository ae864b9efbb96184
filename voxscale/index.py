"""The index of a store: a table of all accepted scans in Parquet parts, opened without reading them.

The ledger is the truth; the index is made from it at the end of every ingest,
see `voxscale.index_write`.
"""

import bisect
import io
import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voxscale.blobs import Blob
from voxscale.cells import Cells
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.folder import Folder, LocalFolder, open_folder
from voxscale.index_table import OLDER, VERSION, Statistics, from_row, numbers

INDEX = "index/index.json"
CELLS = "index/cells.bin"
"""How many volumes of each group each row group holds: a stream starts from it, however many parts there are."""
ROWS = 1024
"""Rows of a row group: the unit that is read, and that streams shuffle as one."""
KEPT = 16
"""Row groups kept in memory once read."""


class _Part:
    """One part; its end is read and checked when the first row group of it is asked for."""

    def __init__(self, folder: Folder, line: Mapping[str, Any]) -> None:
        self.name, self.rows, self._size = str(line["name"]), int(line["rows"]), int(line["bytes"])
        self._length, self._crc = (int(value) for value in line["footer"])
        self._folder = folder
        self.row_groups = -(-self.rows // ROWS)

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        """The file and its metadata."""
        try:
            blob = self._folder.blob(f"index/{self.name}", self._size)
            tail = bytes(blob.tail(self._length))
        except OSError:
            raise _damaged(self.name) from None
        if blob.size != self._size or google_crc32c.value(tail) != self._crc:
            raise _damaged(self.name)
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail))
        if (metadata.num_rows, metadata.num_row_groups) != (self.rows, self.row_groups):
            raise _damaged(self.name)
        handle = pa.PythonFile(_File(blob, self._size), mode="r")
        return pq.ParquetFile(handle, metadata=metadata, page_checksum_verification=True), metadata

    def told(self, name: str) -> Any:
        """What the part tells of itself."""
        values: dict[bytes, bytes] = self._opened[1].metadata or {}
        try:
            return json.loads(values[f"voxscale.{name}".encode()])
        except (ValueError, KeyError):
            raise _damaged(self.name) from None

    def read(self, group: int, columns: list[str] | None) -> Any:
        """Some columns, or all, of a row group."""
        try:
            return self._opened[0].read_row_group(group, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException):
            raise _damaged(self.name) from None


def cells_of(store: Path, lines: Iterable[Mapping[str, Any]]) -> Cells:
    """The table of groups of parts that are in their place, from what they tell of themselves.

    Args:
        store: The store, or its URL.
        lines: What `index.json` shall tell of each part.

    Raises:
        DataError: With reason `corrupt`.
    """
    folder = open_folder(store, "range")
    return Cells.of([counts for line in lines for counts in _Part(folder, line).told("groups")])


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
            self._cells: Mapping[str, Any] | None = told.get("cells")
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{INDEX} must be as it was written; ingest again", "corrupt") from None
        if version not in (OLDER, VERSION):
            raise DataError(f"{INDEX} must be of version {VERSION}, not {version}; ingest again", "bad_schema")
        try:
            self._parts = [_Part(folder, line) for line in lines]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{INDEX} must name parts as they were written; ingest again", "corrupt") from None
        if sum(part.rows for part in self._parts) != self._rows:
            raise DataError(f"{INDEX} must tell as many rows as its parts have; ingest again", "corrupt")
        if isinstance(folder, LocalFolder):  # costs nothing; of an object it would be a request each
            for line in lines:
                if folder.size(f"index/{line['name']}") != line["bytes"]:
                    raise _damaged(line["name"])
        ends = np.cumsum([part.row_groups for part in self._parts]).tolist()
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
            for modality, values in part.told("statistics").items():
                found.setdefault(modality, Statistics()).merge(Statistics(**values))
        return dict(sorted(found.items()))

    @property
    def row_groups(self) -> int:
        """How many there are."""
        return self._first[-1]

    @cached_property
    def cells(self) -> Cells:
        """Volumes of each group, see `voxscale.entry.group_of`, in each row group.

        Raises:
            DataError: With reason `corrupt`.
        """
        told = self._cells
        if told is None:  # written before there was such a table
            return Cells.of([counts for part in self._parts for counts in part.told("groups")])
        try:
            data = open_folder(self._store).read(CELLS)
            return Cells.unpacked(told["groups"], self.row_groups, data, told["crc32c"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{CELLS} must be as it was written; ingest again", "corrupt") from None

    def read(self, number: int, columns: list[str] | None) -> Any:
        """Some columns, or all, of a row group, as a table."""
        part = bisect.bisect_right(self._first, number) - 1
        return self._parts[part].read(number - self._first[part], columns)

    def _whole(self, number: int) -> Any:
        return self.read(number, None)

    def column(self, name: str) -> NDArray[Any]:
        """One column whole: (rows,), or (rows, n) for fixed lists; strings as objects."""
        return np.concatenate(
            [numbers(self.read(n, [name]).column(name)) for n in range(self.row_groups)] or [np.zeros(0)]
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
            ids = np.concatenate([self.ids(n) for n in range(self.row_groups)] or [np.zeros(0, np.uint64)])
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
        for number in range(self.row_groups):
            yield from self.read(number, ["id"]).column("id").to_pylist()

    def __len__(self) -> int:
        return self._rows

    def stream(self) -> Iterator[tuple[str, Entry]]:
        """Ids and entries in order, each row group read once."""
        for number in range(self.row_groups):
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
