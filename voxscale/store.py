"""The store: one OME-Zarr image per accepted scan, with its labels, its exact values and its geometry."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import Layout, chunk_bytes, layout_of, write_array
from voxscale.chunks import Box, Mapped, Ranged, Shard, open_shard, read_box
from voxscale.config import from_dict, to_dict
from voxscale.contract import InputContract
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import commit_folder, write_json
from voxscale.index import INDEX, Index
from voxscale.ome import image_label, multiscales
from voxscale.pyramid import Level, levels, shrink, shrink_label, shrink_mask
from voxscale.volume import LabelMap, Volume

SCHEMA = 3
LEDGER = "ledger.jsonl"
LOCATIONS = 1000
"""Voxels of each class whose places are kept."""
OPEN = 64
"""Shards kept open by a store."""

Access = Literal["map", "range"]
"""Map shards into memory, or read ranges of them: for network file systems, where a cut file ends a process."""


def create_store(path: Path, classes: Mapping[int, str], image_classes: Mapping[int, str] | None = None) -> None:
    """Make an empty store, or add classes to the one that is there.

    Args:
        path: The store's folder.
        classes: Names of the label values, background left out. A value
            named by its own number may be renamed later.
        image_classes: Names of the classes of whole images.

    Raises:
        DataError: With reason `class_conflict` if a value has another name in the store.
    """
    fresh: dict[str, Any] = {"schema": SCHEMA, "kind": "store", "classes": {}}
    root = read_root(path) if (path / "zarr.json").exists() else fresh
    merged = root | {
        "classes": _merged(root["classes"], classes, "classes"),
        "image_classes": _merged(root.get("image_classes", {}), image_classes or {}, "image_classes"),
    }
    if merged != root:
        write_root(path, merged)


def _merged(before: Mapping[str, str], new: Mapping[int, str], what: str) -> dict[str, str]:
    """Names of values, those of the store first."""
    known = {int(value): name for value, name in before.items()}
    for value, name in new.items():
        if known.get(value, str(value)) not in (str(value), name):
            raise DataError(
                f"store.{what}.{value} must be {known[value]!r}, not {name!r}; give them another store",
                "class_conflict",
            )
    return _named(known | dict(new))


def _named(classes: Mapping[int, str]) -> dict[str, str]:
    return {str(value): name for value, name in sorted(classes.items())}


def read_root(path: Path) -> dict[str, Any]:
    """The store's own attributes.

    Raises:
        DataError: With reason `not_a_store` or `bad_schema`.
    """
    try:
        root = json.loads((path / "zarr.json").read_text())["attributes"]["voxscale"]
        found = root["kind"], root["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path.name} must be a store made by data_prep ingest", "not_a_store") from None
    if found != ("store", SCHEMA):
        raise DataError(f"{path.name} must be a store of schema {SCHEMA}, not {found}; ingest it again", "bad_schema")
    return root


def write_root(path: Path, attributes: Mapping[str, Any]) -> None:
    """Replace the store's own attributes in one step."""
    write_json(path / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {"voxscale": attributes}})


def stamp_contract(path: Path, contract: InputContract) -> None:
    """Write into the store how its scans shall become network input."""
    write_root(path, {**read_root(path), "contract": to_dict(contract)})


def write_volume(
    store: Path,
    key: str,
    volume: Volume,
    label: LabelMap | None,
    entry: Entry,
    classes: Mapping[int, str],
    removed: NDArray[np.bool_] | None = None,
    beside_it: Mapping[str, bytes] | None = None,
) -> Entry:
    """Write one scan so that it appears whole or not at all.

    Args:
        store: The store's folder.
        key: Id of the scan.
        volume: The scan.
        label: Its label on the same grid.
        entry: What is known of it.
        classes: Names of the label values.
        removed: (z, y, x), true where voxels were blanked; kept as a label of its own.
        beside_it: Further small files of the scan's folder, by name.

    Returns:
        The entry with `bytes` filled in.
    """
    beside = store / f".{key}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    _write_levels(beside, volume.voxels, volume, shrink)
    if label is not None:
        _write_label(beside, "task", label, volume, classes, shrink_label)
    if removed is not None:
        mask = LabelMap(removed.astype(np.uint8), volume.affine)
        _write_label(beside, "removed", mask, volume, {1: "removed"}, shrink_mask)
    present = [name for name, found in (("task", label), ("removed", removed)) if found is not None]
    if present:
        _write_group(beside / "labels", {"ome": {"version": "0.5", "labels": present}})
    entry = replace(entry, bytes=chunk_bytes(beside))
    ome = {"version": "0.5", "multiscales": multiscales(volume, _levels(volume))}
    _write_group(beside, {"ome": ome, "voxscale": asdict(entry)})
    for name, content in (beside_it or {}).items():
        (beside / name).write_bytes(content)
    commit_folder(beside, store / key)
    return entry


Shrink = Callable[[NDArray[Any], Sequence[int]], NDArray[Any]]


def _levels(volume: Volume) -> tuple[Level, ...]:
    return levels(volume.shape, volume.spacing)


def _write_levels(folder: Path, voxels: NDArray[Any], volume: Volume, shrink_by: Shrink) -> None:
    """Write an array and its coarser levels."""
    factor = (1, 1, 1)
    for number, level in enumerate(_levels(volume)):
        voxels = shrink_by(voxels, [now // before for now, before in zip(level.factor, factor, strict=True)])
        factor = level.factor
        write_array(folder / str(number), voxels)


def _write_label(
    folder: Path, name: str, label: LabelMap, volume: Volume, classes: Mapping[int, str], shrink_by: Shrink
) -> None:
    """Write one label of a scan, with the names of its classes and where they are."""
    _write_levels(folder / "labels" / name, label.voxels, volume, shrink_by)
    scales = multiscales(volume, _levels(volume), label=True)
    ome = {"version": "0.5", "multiscales": scales, "image-label": image_label(label, classes)}
    _write_group(folder / "labels" / name, {"ome": ome, "voxscale": _count(label)})


def _write_group(folder: Path, attributes: dict[str, Any]) -> None:
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _count(label: LabelMap) -> dict[str, Any]:
    """Voxel count of each class and places of up to `LOCATIONS` of its voxels, evenly spread in scan order."""
    flat = label.voxels.reshape(-1)
    counts: dict[str, int] = {}
    locations: dict[str, list[list[int]]] = {}
    for value in (int(v) for v in np.unique(flat) if v):
        places = np.flatnonzero(flat == value)
        chosen = places[np.linspace(0, len(places) - 1, min(len(places), LOCATIONS)).round().astype(int)]
        counts[str(value)] = len(places)
        locations[str(value)] = np.stack(np.unravel_index(chosen, label.voxels.shape), axis=1).tolist()
    return {"counts": counts, "locations": locations}


@dataclass(frozen=True, slots=True)
class Store:
    """An open store, for reading.

    Attributes:
        path: Its folder.
        classes: Names of the label values.
        contract: How scans shall become network input, once planned.
        entries: The accepted scans by id, in the order of the ledger.
        image_classes: Names of the classes of whole images.
    """

    path: Path
    classes: dict[int, str]
    contract: InputContract | None
    entries: Mapping[str, Entry]
    image_classes: dict[int, str] = field(default_factory=lambda: cast(dict[int, str], {}))
    access: Access = "map"
    _shards: OrderedDict[str, Shard] = field(
        default_factory=lambda: OrderedDict[str, Shard](), repr=False, compare=False
    )

    def read(self, key: str, box: Box | None = None, level: int = 0, as_float: bool = False) -> NDArray[Any]:
        """Stored numbers of one scan, (z, y, x); (3, 1, y, x) for a colour image.

        Args:
            key: Id of the scan.
            box: Half-open index ranges along z, y, x inside the level; None reads all of it.
            level: Of the pyramid; 0 is the scan itself, see `voxscale.pyramid`.
            as_float: Whether 8- and 16-bit numbers are converted to float32 as they are decoded.

        Raises:
            DataError: With reason `unknown_id`, `no_label`, `bad_box` or `corrupt`.
        """
        entry = self._entry(key)
        return self._read(key, "", level, box, entry.dtype, entry.channels, as_float)

    def levels(self, key: str) -> tuple[Level, ...]:
        """The pyramid of one scan."""
        entry = self._entry(key)
        return levels(entry.shape, entry.spacing)

    def read_label(self, key: str, box: Box | None = None, level: int = 0) -> NDArray[np.uint8]:
        """The label of one scan, (z, y, x) uint8; arguments and errors as in `read`."""
        if self._entry(key).label is None:
            raise DataError(f"scan {key} must have a label", "no_label")
        return self._read(key, "labels/task/", level, box)

    def read_removed(self, key: str, box: Box | None = None, level: int = 0) -> NDArray[np.uint8] | None:
        """1 where the privacy gate blanked a voxel, (z, y, x) uint8; None if nothing was; arguments as in `read`."""
        removed = self._entry(key).privacy.removed
        return self._read(key, "labels/removed/", level, box) if removed else None

    def label_locations(self, key: str) -> dict[int, NDArray[np.int64]]:
        """Places of some voxels of each class present, (n, 3) indices along z, y, x."""
        if self._entry(key).label is None:
            raise DataError(f"scan {key} must have a label", "no_label")
        try:
            group = json.loads((self.path / key / "labels" / "task" / "zarr.json").read_text())
            found = group["attributes"]["voxscale"]["locations"]
        except (OSError, ValueError, KeyError):
            raise DataError(f"scan {key} must have readable label attributes; ingest it again", "corrupt") from None
        return {int(value): np.asarray(places, dtype=np.int64) for value, places in found.items()}

    def volume(self, key: str) -> Volume:
        """One whole scan with its geometry."""
        entry = self._entry(key)
        affine = np.asarray(entry.affine, dtype=np.float64)
        return Volume(self.read(key), affine, entry.modality, entry.slope, entry.intercept)

    def _entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise DataError(
                f"scan id must be one of the store's {len(self.entries)} accepted ids, not {key}", "unknown_id"
            )
        return self.entries[key]

    def _read(
        self,
        key: str,
        part: str,
        level: int,
        box: Box | None,
        dtype: str = "uint8",
        channels: int = 1,
        as_float: bool = False,
    ) -> NDArray[Any]:
        pyramid = self.levels(key)
        if not 0 <= level < len(pyramid):
            raise DataError(f"level must be below {len(pyramid)}, not {level}", "bad_box")
        shape = pyramid[level].shape
        where = [(0, n) for n in shape] if box is None else [(int(a), int(b)) for a, b in box]
        if len(where) != 3 or any(not 0 <= a < b <= n for (a, b), n in zip(where, shape, strict=True)):
            raise DataError(f"box must lie inside {shape} and not be empty, not {where}", "bad_box")
        name = f"{key}/{part}{level}"
        layout = layout_of(shape if channels == 1 else (channels, *shape), dtype)
        flat = where if channels == 1 else [(0, channels), *where[1:]]
        try:
            found = read_box(layout, partial(self._shard, name, layout, channels), flat, as_float)
        except (OSError, DataError):
            raise DataError(f"scan {key} must have intact chunks; ingest it again", "corrupt") from None
        return found if channels == 1 else found[:, None]

    def _shard(self, name: str, layout: Layout, channels: int, place: tuple[int, int, int]) -> Shard:
        """An open shard; the ones used last are kept."""
        z, y, x = place
        file = f"{name}/c/{z}/{y}/{x}" if channels == 1 else f"{name}/c/{z}/0/{y}/{x}"
        if file in self._shards:
            self._shards.move_to_end(file)
        else:
            self._shards[file] = open_shard((Mapped if self.access == "map" else Ranged)(self.path / file), layout)
            if len(self._shards) > OPEN:
                self._shards.popitem(last=False)
        return self._shards[file]


def open_store(path: Path, access: Access = "map") -> Store:
    """Open a store for reading, even while it is being written.

    Args:
        path: The store's folder.
        access: How shards are read.

    Raises:
        DataError: With reason `not_a_store`, `bad_schema` or `corrupt`.
    """
    root = read_root(path)
    contract = root.get("contract")
    return Store(
        path=path,
        classes={int(value): name for value, name in root["classes"].items()},
        contract=None if contract is None else from_dict(InputContract, contract, "store.contract"),
        entries=Index(path / INDEX) if (path / INDEX).exists() else dict(accepted(path)),
        image_classes={int(value): name for value, name in root.get("image_classes", {}).items()},
        access=access,
    )


def accepted(path: Path) -> Iterator[tuple[str, Entry]]:
    """Id and entry of every accepted scan, from the ledger.

    Raises:
        DataError: With reason `corrupt`.
    """
    ledger = path / LEDGER
    if not ledger.exists():
        return
    with ledger.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break  # the writer is not done with it
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(f"{LEDGER} line {number} must be JSON", "corrupt") from None
            if row["status"] == "accepted":
                yield row["id"], from_dict(Entry, row["entry"], "entry")
