"""The store, for reading: one OME-Zarr image per accepted scan, with its labels, exact values and geometry."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import Layout, layout_of
from voxscale.chunks import Box, Shard, copy_chunks, open_shard, read_box
from voxscale.config import from_dict
from voxscale.contract import InputContract
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import json_crc
from voxscale.folder import Access, Folder, open_folder
from voxscale.index import INDEX, Index
from voxscale.ledger import accepted
from voxscale.pyramid import Level, levels
from voxscale.store_root import read_root
from voxscale.volume import Volume

OPEN = 64
"""Shards kept open by a store."""
MEND = "remove its folder from the store and ingest again"
"""What helps a damaged scan: ingest writes those anew whose folder is gone."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open store, for reading.

    Attributes:
        path: Its folder.
        classes: Names of the label values.
        contract: How scans shall become network input, once planned.
        entries: The accepted scans by id, in the order of the ledger.
        image_classes: Names of the classes of whole images.
        access: How files are read.
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

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.path, self.classes, self.contract, self.entries, self.image_classes, self.access)
        return Store, parts  # open files stay in their process

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
        return self.read_of(key, self._entry(key), box, level, as_float)

    def read_of(
        self, key: str, entry: Entry, box: Box | None = None, level: int = 0, as_float: bool = False
    ) -> NDArray[Any]:
        """`read` for a caller that has the scan's entry, without a look into the index."""
        return self._read(key, entry, "", level, box, entry.dtype, entry.channels, as_float)

    def read_label(self, key: str, box: Box | None = None, level: int = 0) -> NDArray[np.uint8]:
        """The label of one scan, (z, y, x) uint8; arguments and errors as in `read`."""
        entry = self._entry(key)
        if entry.label is None:
            raise DataError(f"scan {key} must have a label", "no_label")
        return self._read(key, entry, "labels/task/", level, box)

    def read_removed(self, key: str, box: Box | None = None, level: int = 0) -> NDArray[np.uint8] | None:
        """1 where the privacy gate blanked a voxel, (z, y, x) uint8; None if nothing was; arguments as in `read`."""
        return self.removed_of(key, self._entry(key), box, level)

    def removed_of(self, key: str, entry: Entry, box: Box | None = None, level: int = 0) -> NDArray[np.uint8] | None:
        """`read_removed` for a caller that has the scan's entry."""
        return self._read(key, entry, "labels/removed/", level, box) if entry.privacy.removed else None

    def entry(self, key: str) -> Entry:
        """The entry of one scan from its own folder, checked, without a look into the index.

        Raises:
            DataError: With reason `corrupt`.
        """
        try:
            attributes = json.loads(self._folder.read(f"{key}/zarr.json"))["attributes"]
            told = attributes["voxscale"]
            if json_crc(told) == attributes["crc32c"]:
                return from_dict(Entry, told, "entry")
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise DataError(f"scan {key} must have the attributes it was written with; {MEND}", "corrupt")

    def cut(self, key: str, box: Box, level: int = 0) -> tuple[Layout, bytes, bytes | None]:
        """Copy a box of a scan along the edges of its chunks, without decoding it.

        Args:
            key: Id of the scan, which has no colours.
            box: Half-open index ranges along z, y, x that begin and end at chunks, or end with the level.
            level: Of the pyramid.

        Returns:
            Layout and shard of the voxels, and the shard of the mask of blanked voxels, if any were.

        Raises:
            DataError: With reason `unknown_id` or `corrupt`.
        """
        entry = self._entry(key)
        parts: list[bytes] = []
        names = [f"{level}"] + [f"labels/removed/{level}"] * bool(entry.privacy.removed)
        shape = levels(entry.shape, entry.spacing)[level].shape
        cut = layout_of(shape, entry.dtype)
        for name, dtype in zip(names, (entry.dtype, "uint8"), strict=False):
            layout = layout_of(shape, dtype)
            try:
                found, shard = copy_chunks(layout, partial(self._shard, f"{key}/{name}", layout, 1), box)
            except (OSError, DataError):
                raise DataError(f"scan {key} must have intact chunks; {MEND}", "corrupt") from None
            cut = cut if parts else found
            parts.append(shard)
        return cut, parts[0], parts[1] if len(parts) > 1 else None

    def levels(self, key: str) -> tuple[Level, ...]:
        """The pyramid of one scan."""
        entry = self._entry(key)
        return levels(entry.shape, entry.spacing)

    def label_locations(self, key: str) -> dict[int, NDArray[np.int64]]:
        """Places of some voxels of each class present, (n, 3) indices along z, y, x."""
        entry = self._entry(key)
        if entry.label is None:
            raise DataError(f"scan {key} must have a label", "no_label")
        try:
            attributes = json.loads(self._folder.read(f"{key}/labels/task/zarr.json"))["attributes"]
            told = attributes["voxscale"]
            # Versions that did not keep `ingest` wrote no checksum here either.
            intact = attributes.get("crc32c", entry.ingest) in (None, json_crc(told))
            found = told["locations"] if intact else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            found = None
        if found is None:
            raise DataError(f"scan {key} must have the label attributes it was written with; {MEND}", "corrupt")
        return {int(value): np.asarray(places, dtype=np.int64) for value, places in found.items()}

    def volume(self, key: str) -> Volume:
        """One whole scan with its geometry."""
        entry = self._entry(key)
        affine = np.asarray(entry.affine, dtype=np.float64)
        return Volume(self.read(key), affine, entry.modality, entry.slope, entry.intercept)

    @property
    def _folder(self) -> Folder:
        return open_folder(self.path, self.access)

    def _entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise DataError(
                f"scan id must be one of the store's {len(self.entries)} accepted ids, not {key}", "unknown_id"
            )
        return self.entries[key]

    def _read(
        self,
        key: str,
        entry: Entry,
        part: str,
        level: int,
        box: Box | None,
        dtype: str = "uint8",
        channels: int = 1,
        as_float: bool = False,
    ) -> NDArray[Any]:
        pyramid = levels(entry.shape, entry.spacing)
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
            raise DataError(f"scan {key} must have intact chunks; {MEND}", "corrupt") from None
        return found if channels == 1 else found[:, None]

    def _shard(self, name: str, layout: Layout, channels: int, place: tuple[int, int, int]) -> Shard:
        """An open shard; the ones used last are kept."""
        z, y, x = place
        file = f"{name}/c/{z}/{y}/{x}" if channels == 1 else f"{name}/c/{z}/0/{y}/{x}"
        if file in self._shards:
            self._shards.move_to_end(file)
        else:
            self._shards[file] = open_shard(self._folder.blob(file), layout)
            if len(self._shards) > OPEN:
                self._shards.popitem(last=False)
        return self._shards[file]


def open_store(path: Path, access: Access = "map", indexed: bool = True) -> Store:
    """Open a store for reading, even while it is being written.

    Args:
        path: The store's folder, or its URL.
        access: How local shards are read.
        indexed: Whether entries come from the index if there is one, and not from the ledger into memory.

    Raises:
        DataError: With reason `not_a_store`, `bad_schema` or `corrupt`.
    """
    root = read_root(path)
    contract = root.get("contract")
    return Store(
        path=path,
        classes={int(value): name for value, name in root["classes"].items()},
        contract=None if contract is None else from_dict(InputContract, contract, "store.contract"),
        entries=Index(path) if indexed and open_folder(path).size(INDEX) is not None else dict(accepted(path)),
        image_classes={int(value): name for value, name in root.get("image_classes", {}).items()},
        access=access,
    )
