"""The table of the index: its columns, a row from an entry and back, the statistics of each modality."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from voxscale.config import from_dict
from voxscale.contract import PERCENTILES
from voxscale.entry import Entry, group_of
from voxscale.errors import DataError

VERSION = 4
OLDER = 3
"""Without the column `ingest`; it is read, and written anew by the next ingest."""


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
        ("group", pa.string()),
        ("shape", _fixed(pa.int32(), 3)),
        ("channels", pa.int8()),
        ("spacing", _fixed(pa.float64(), 3)),
        ("spacing_known", pa.bool_()),
        ("affine", _fixed(pa.float64(), 16)),
        ("dtype", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("percentiles", _fixed(pa.float64(), len(PERCENTILES))),
        ("histogram", pa.list_(pa.float64())),
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
        ("ingest", pa.string()),
    ],
    metadata={"voxscale.index": str(VERSION)},
)
"""Columns that streams and tools may rely on: names and units as in `voxscale.entry.Entry`; fixed lists are in
(z, y, x) order, the affine by rows, the percentiles in the order of `PERCENTILES`, `technique` as JSON; `group` is what
`voxscale.entry.group_of` says, null for 2D images."""


def to_row(key: str, entry: Entry) -> dict[str, Any]:
    """One row of the table."""
    if len(key) != ID_DIGITS or not set(key) <= set("0123456789abcdef"):
        raise DataError(f"scan id must be of {ID_DIGITS} hexadecimal digits, not {key}", "corrupt")
    row = {name: getattr(entry, name) for name in _PLAIN}
    privacy = asdict(entry.privacy)
    row |= {"id": key, "body_part": entry.technique.get("body_part"), "technique": json.dumps(entry.technique)}
    row["group"] = None if entry.planar else group_of(entry.dataset, entry.modality, row["body_part"])
    row["occupancy"] = None if entry.occupancy is None else asdict(entry.occupancy)
    row["affine"] = [value for line in entry.affine for value in line]
    row["percentiles"] = [entry.percentiles[str(p)] for p in PERCENTILES]
    row["foreground_box"] = [value for pair in entry.foreground_box for value in pair]
    row["label"] = None
    if entry.label is not None:
        row["label"] = [{"value": int(value), "voxels": n} for value, n in entry.label.items()]
    return row | privacy


def from_row(row: dict[str, Any]) -> Entry:
    """The entry of one row, its id left out."""
    made = {name: value for name, value in row.items() if name not in ("id", "body_part", "group", *_PRIVACY)}
    made["privacy"] = {name: row[name] for name in _PRIVACY}
    made["technique"] = json.loads(row["technique"])
    made["affine"] = [row["affine"][start : start + 4] for start in range(0, 16, 4)]
    made["percentiles"] = {str(p): value for p, value in zip(PERCENTILES, row["percentiles"], strict=True)}
    made["foreground_box"] = [row["foreground_box"][start : start + 2] for start in range(0, 6, 2)]
    if row["label"] is not None:
        made["label"] = {str(pair["value"]): pair["voxels"] for pair in row["label"]}
    return from_dict(Entry, made, "index")


ID_DIGITS = 16
_PRIVACY = ("face", "text", "ocr", "removed")
_SPECIAL = {"id", "body_part", "group", "technique", "affine", "percentiles", "foreground_box", "occupancy", "label"}
_PLAIN = [name for name in SCHEMA.names if name not in {*_SPECIAL, *_PRIVACY}]


def to_table(some: Sequence[tuple[str, Entry]]) -> Any:
    """A table of some rows.

    Raises:
        DataError: With reason `corrupt` if an id is not one.
    """
    return pa.Table.from_pylist([to_row(key, entry) for key, entry in some], SCHEMA)


def numbers(column: Any) -> NDArray[Any]:
    """A column of a table as an array: (rows,), or (rows, n) for fixed lists; strings as objects."""
    if pa.types.is_fixed_size_list(column.type):
        return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return column.to_numpy()


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
        self.merge(Statistics(1, entry.foreground * math.prod(entry.shape), entry.body_mean, entry.body_std))

    def merge(self, other: "Statistics") -> None:
        """Pool with those of other scans."""
        more = other.voxels
        total, apart = self.voxels + more, other.mean - self.mean
        self.scans += other.scans
        if total > 0:
            squares = self.voxels * self.std**2 + more * other.std**2 + apart**2 * self.voxels * more / total
            self.mean += apart * more / total
            self.voxels, self.std = total, math.sqrt(squares / total)
