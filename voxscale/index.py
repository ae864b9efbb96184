"""The index of a store: one Parquet table of all accepted scans, opened without reading it whole.

The ledger is the truth; the index is made from it at the end of every ingest
and taken away before the next one begins, so an index that is there is valid.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxscale.config import from_dict
from voxscale.contract import PERCENTILES
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import sync
from voxscale.folder import open_folder, url_of

INDEX = "index.parquet"
VERSION = 2
ROWS = 512
"""Rows of a row group: the unit that is read."""
KEPT = 32
"""Row groups kept in memory once read."""


def _fixed(kind: Any, n: int) -> Any:
    return pa.list_(kind, n)


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        ("study", pa.string()),
        ("series", pa.string()),
        ("day", pa.int32()),
        pa.field("modality", pa.string(), nullable=False),
        ("modality_from", pa.string()),
        ("body_part", pa.string()),
        ("shape", _fixed(pa.int32(), 3)),
        ("channels", pa.int8()),
        ("spacing", _fixed(pa.float64(), 3)),
        ("spacing_known", pa.bool_()),
        ("affine", _fixed(pa.float64(), 16)),
        ("dtype", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("percentiles", _fixed(pa.float64(), len(PERCENTILES))),
        ("histogram", pa.list_(pa.float32())),
        ("body_mean", pa.float64()),
        ("body_std", pa.float64()),
        ("foreground_box", _fixed(pa.int32(), 6)),
        ("foreground", pa.float64()),
        (
            "occupancy",
            pa.struct([("cell", _fixed(pa.int32(), 3)), ("grid", _fixed(pa.int32(), 3)), ("shares", pa.string())]),
        ),
        ("padding", pa.float64()),
        ("padded", pa.float64()),
        ("label", pa.list_(pa.struct([("value", pa.int32()), ("voxels", pa.int64())]))),
        ("image_class", pa.int32()),
        ("technique", pa.string()),
        ("face", pa.string()),
        ("text", pa.string()),
        ("ocr", pa.bool_()),
        ("removed", pa.int64()),
        ("part", pa.int32()),
        ("parts", pa.int32()),
        ("bytes", pa.int64()),
    ],
    metadata={"voxscale.index": str(VERSION)},
)
"""Columns that streams and tools may rely on: names and units as in `voxscale.entry.Entry`; fixed lists are in
(z, y, x) order, the affine by rows, the percentiles in the order of `PERCENTILES`, `technique` as JSON."""


def to_row(key: str, entry: Entry) -> dict[str, Any]:
    """One row of the table."""
    row = asdict(entry)
    privacy = row.pop("privacy")
    row |= {"id": key, "body_part": entry.technique.get("body_part"), "technique": json.dumps(entry.technique)}
    row["affine"] = [value for line in entry.affine for value in line]
    row["percentiles"] = [entry.percentiles[str(p)] for p in PERCENTILES]
    row["foreground_box"] = [value for pair in entry.foreground_box for value in pair]
    if entry.label is not None:
        row["label"] = [{"value": int(value), "voxels": n} for value, n in entry.label.items()]
    return row | privacy


def from_row(row: dict[str, Any]) -> Entry:
    """The entry of one row, its id left out."""
    made = {name: value for name, value in row.items() if name not in ("id", "body_part", *_PRIVACY)}
    made["privacy"] = {name: row[name] for name in _PRIVACY}
    made["technique"] = json.loads(row["technique"])
    made["affine"] = [row["affine"][start : start + 4] for start in range(0, 16, 4)]
    made["percentiles"] = {str(p): value for p, value in zip(PERCENTILES, row["percentiles"], strict=True)}
    made["foreground_box"] = [row["foreground_box"][start : start + 2] for start in range(0, 6, 2)]
    if row["label"] is not None:
        made["label"] = {str(pair["value"]): pair["voxels"] for pair in row["label"]}
    return from_dict(Entry, made, "index")


_PRIVACY = ("face", "text", "ocr", "removed")


@dataclass(slots=True)
class Statistics:
    """What all scans of one modality have in common, over the voxels of their bodies.

    Attributes:
        scans: How many.
        voxels: Of the body, in all of them.
        mean: Over these voxels.
        std: Standard deviation over these voxels.
    """

    scans: int = 0
    voxels: float = 0.0
    mean: float = 0.0
    std: float = 0.0

    def add(self, entry: Entry) -> None:
        """Pool one more scan (Chan, Golub and LeVeque 1983, the pairwise update)."""
        more = entry.foreground * math.prod(entry.shape)
        total, apart = self.voxels + more, entry.body_mean - self.mean
        self.scans += 1
        if total > 0:
            squares = self.voxels * self.std**2 + more * entry.body_std**2 + apart**2 * self.voxels * more / total
            self.mean += apart * more / total
            self.voxels, self.std = total, math.sqrt(squares / total)


def write_index(store: Path, entries: Iterable[tuple[str, Entry]]) -> None:
    """Write the index of a store beside the old one, then put it in its place.

    The statistics of each modality go into the file's metadata.
    """
    beside = store / f".{INDEX}.{os.getpid()}.tmp"
    try:
        with pq.ParquetWriter(beside, SCHEMA, compression="zstd") as writer:
            waiting: list[dict[str, Any]] = []
            statistics: dict[str, Statistics] = {}
            for key, entry in entries:
                statistics.setdefault(entry.modality, Statistics()).add(entry)
                waiting.append(to_row(key, entry))
                if len(waiting) == ROWS:
                    writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
            told = {modality: asdict(found) for modality, found in sorted(statistics.items())}
            writer.add_key_value_metadata({"voxscale.statistics": json.dumps(told)})
        sync(beside)
        beside.replace(store / INDEX)
    finally:
        beside.unlink(missing_ok=True)
    sync(store)


class Index(Mapping[str, Entry]):
    """The accepted scans of a store by id, in the order of the ledger; a row group is read when it is asked for.

    Raises:
        DataError: With reason `corrupt` or `bad_schema`, when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._path = path
            self._file = pq.ParquetFile(
                path if url_of(path) is None else pa.BufferReader(open_folder(path.parent).read(path.name))
            )
            found = (self._file.schema_arrow.metadata or {}).get(b"voxscale.index", b"").decode()
            ids: list[str] = self._file.read(columns=["id"]).column("id").to_pylist()
        except (OSError, pa.ArrowException):
            raise DataError(f"{INDEX} must be a readable Parquet file; ingest again", "corrupt") from None
        if found != str(VERSION):
            raise DataError(
                f"{INDEX} must be of version {VERSION}, not {found or 'unknown'}; ingest again", "bad_schema"
            )
        self._place = {key: place for place, key in enumerate(ids)}
        self._groups: dict[int, list[dict[str, Any]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self._path,)  # open files stay in their process

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Of each modality."""
        found: dict[bytes, bytes] = self._file.metadata.metadata or {}
        told = json.loads(found.get(b"voxscale.statistics", b"{}"))
        return {modality: Statistics(**values) for modality, values in told.items()}

    def __getitem__(self, key: str) -> Entry:
        group, row = divmod(self._place[key], ROWS)
        if group not in self._groups:
            if len(self._groups) >= KEPT:
                del self._groups[next(iter(self._groups))]  # the one read longest ago
            self._groups[group] = self._file.read_row_group(group).to_pylist()
        return from_row(self._groups[group][row])

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)
