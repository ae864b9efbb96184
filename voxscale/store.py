"""The store: one OME-Zarr image per accepted scan, with its labels, its exact values and its geometry."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from voxscale.arrays import chunk_bytes, write_array
from voxscale.config import from_dict, to_dict
from voxscale.contract import InputContract
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import commit_folder, write_json
from voxscale.index import INDEX, Index
from voxscale.ome import image_label, multiscales
from voxscale.volume import LabelMap, Volume

SCHEMA = 2
LEDGER = "ledger.jsonl"
LOCATIONS = 1000
"""Voxels of each class whose places are kept."""

Box = Sequence[tuple[int, int]]


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
    write_array(beside / "0", volume.voxels)
    if label is not None:
        _write_label(beside, "task", label, volume, classes)
    if removed is not None:
        _write_label(beside, "removed", LabelMap(removed.astype(np.uint8), volume.affine), volume, {1: "removed"})
    present = [name for name, found in (("task", label), ("removed", removed)) if found is not None]
    if present:
        _write_group(beside / "labels", {"ome": {"version": "0.5", "labels": present}})
    entry = replace(entry, bytes=chunk_bytes(beside))
    ome = {"version": "0.5", "multiscales": multiscales(volume)}
    _write_group(beside, {"ome": ome, "voxscale": asdict(entry)})
    for name, content in (beside_it or {}).items():
        (beside / name).write_bytes(content)
    commit_folder(beside, store / key)
    return entry


def _write_label(folder: Path, name: str, label: LabelMap, volume: Volume, classes: Mapping[int, str]) -> None:
    """Write one label of a scan, with the names of its classes and where they are."""
    write_array(folder / "labels" / name / "0", label.voxels)
    ome = {"version": "0.5", "multiscales": multiscales(volume, label=True), "image-label": image_label(label, classes)}
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
    _arrays: dict[str, Any] = field(default_factory=lambda: cast(dict[str, Any], {}), repr=False, compare=False)

    def read(self, key: str, box: Box | None = None) -> NDArray[Any]:
        """Stored numbers of one scan, (z, y, x); (3, 1, y, x) for a colour image.

        Args:
            key: Id of the scan.
            box: Half-open index ranges along z, y, x inside the scan; None reads all of it.

        Raises:
            DataError: With reason `unknown_id`, `no_label`, `bad_box` or `corrupt`.
        """
        return self._read(key, "0", box)

    def read_label(self, key: str, box: Box | None = None) -> NDArray[np.uint8]:
        """The label of one scan, (z, y, x) uint8; arguments and errors as in `read`."""
        if self._entry(key).label is None:
            raise DataError(f"scan {key} must have a label", "no_label")
        return self._read(key, "labels/task/0", box)

    def read_removed(self, key: str, box: Box | None = None) -> NDArray[np.uint8] | None:
        """1 where the privacy gate blanked a voxel, (z, y, x) uint8; None if nothing was; arguments as in `read`."""
        return self._read(key, "labels/removed/0", box) if self._entry(key).privacy.removed else None

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

    def _read(self, key: str, part: str, box: Box | None) -> NDArray[Any]:
        entry = self._entry(key)
        where = [(0, n) for n in entry.shape] if box is None else [(int(a), int(b)) for a, b in box]
        if len(where) != 3 or any(not 0 <= a < b <= n for (a, b), n in zip(where, entry.shape, strict=True)):
            raise DataError(f"box must lie inside {entry.shape} and not be empty, not {where}", "bad_box")
        try:
            return np.asarray(self._array(key, part)[(..., *(slice(a, b) for a, b in where))])
        except DataError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError):
            raise DataError(f"scan {key} must have intact chunks; ingest it again", "corrupt") from None

    def _array(self, key: str, part: str) -> Any:
        """An open array; the first use checks that no chunk file is missing or cut."""
        name = f"{key}/{part}"
        if name not in self._arrays:
            found, wanted = chunk_bytes(self.path / key), self.entries[key].bytes
            if found != wanted:
                raise DataError(
                    f"scan {key} must have {wanted} bytes of chunks, not {found}; ingest it again", "corrupt"
                )
            self._arrays[name] = zarr.open_array(self.path / name, mode="r")
        return self._arrays[name]


def open_store(path: Path) -> Store:
    """Open a store for reading, even while it is being written.

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
