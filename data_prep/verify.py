"""Compare every byte of shards, or every voxel of a store, with its checksums: `python -m data_prep verify PATH`."""

import errno
import hashlib
import io
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from data_prep.shard_folder import held
from data_prep.sweep import THUMBNAILS
from voxscale.config import config, parse, require
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import locked
from voxscale.folder import Folder, open_folder, url_of
from voxscale.index_write import FOLDER as INDEX_FOLDER
from voxscale.index_write import damaged_files, is_of_ledger
from voxscale.ledger import LEDGER
from voxscale.progress import Progress
from voxscale.shards import ManifestShard, index_name, open_manifest
from voxscale.store import Store, open_store
from voxscale.store_root import read_root

log = logging.getLogger("voxscale")

PIECE = 1 << 24
"""Bytes of a tar that are read at a time."""
BATCH = 256
"""Things to verify that are handed to the threads at a time."""

MACHINE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN)
"""Errors of a user's rights, of this machine or its connection: nothing is called damaged for them, or removed."""

END = bytes.fromhex("0000000049454e44ae426082")
"""The last part of every PNG."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that differs from what was written.

    Attributes:
        name: Of the tar or index, or id of the scan.
        what: What is wrong with it.
    """

    name: str
    what: str


def verify_shards(path: Path, workers: int) -> tuple[int, list[Damage]]:
    """Read all tars and indexes that a manifest names, and compare sizes and SHA-256.

    Args:
        path: A folder of shards, or its URL.
        workers: How many are read at the same time.

    Returns:
        How many tars there should be, and what is damaged, in the order of the manifest.

    Raises:
        DataError: If the manifest is missing or damaged itself.
    """
    manifest, folder = open_manifest(path), open_folder(path, "range")
    found = _all(manifest.shards, lambda line: _verify_tar(folder, line), workers, len(manifest.shards), "tars")
    return len(manifest.shards), found


def _verify_tar(folder: Folder, line: ManifestShard) -> list[Damage]:
    found: list[Damage] = []
    index = index_name(line.name)
    try:
        if hashlib.sha256(folder.read(index)).hexdigest() != line.index_sha256:
            found.append(Damage(index, "its bytes differ from what was written"))
    except OSError as error:
        _check_machine(error)
        found.append(Damage(index, "it cannot be read"))
    try:
        size = folder.size(line.name)
        if size is None:
            return [*found, Damage(line.name, "it is missing")]
        if size != line.bytes:
            return [*found, Damage(line.name, f"it has {size} bytes instead of {line.bytes}")]
        blob, digest = folder.blob(line.name, size), hashlib.sha256()
        for start in range(0, size, PIECE):
            digest.update(blob.ranges([(start, min(start + PIECE, size))])[0])
    except OSError as error:
        _check_machine(error)
        return [*found, Damage(line.name, "it cannot be read")]
    if digest.hexdigest() != line.sha256:
        found.append(Damage(line.name, "its bytes differ from what was written"))
    return found


def verify_store(path: Path, workers: int) -> tuple[int, list[Damage]]:
    """Decode all voxels of all accepted scans, with all levels, labels, masks and pictures, and hash the index.

    Where the index is damaged, the ledger says which scans there should be.

    Args:
        path: A store, or its URL.
        workers: How many scans are read at the same time; each is in memory once.

    Returns:
        How many scans there should be, and what is damaged: files of the index, then scans in its order.

    Raises:
        DataError: If the store cannot be opened.
    """
    damaged = [Damage(name, "its bytes differ from what was written") for name in damaged_files(path)]
    store, here = open_store(path, "range", indexed=not damaged), threading.local()
    indexed = not damaged
    pictures = open_folder(path / THUMBNAILS) if "key" in read_root(path) else None  # ingest made it, with pictures
    if indexed and not is_of_ledger(path):
        damaged.append(Damage(LEDGER, "its rows are not those that the index was made of; ingest again"))

    def verify(pair: tuple[str, Entry]) -> list[Damage]:
        if not hasattr(here, "store"):
            # Open shards, and parts of an index, are no thread's but its own.
            own = Store(path, store.classes, store.contract, store.entries, access="range")
            here.store = open_store(path, "range") if indexed else own
        found = [*_verify_scan(here.store, *pair), *([] if pictures is None else _verify_picture(pictures, pair[0]))]
        if found and url_of(path) is None:
            _check_readable(path / pair[0])
        return found

    count = len(store.entries)
    scans = ((key, store.entries[key]) for key in store.entries)
    return count, damaged + _all(scans, verify, workers, count, "scans")


def _check_readable(scan: Path) -> None:
    """Raise what keeps this process from opening files of a scan, which says nothing of their bytes."""
    for root, _, names in os.walk(scan, onerror=_check_machine):
        for name in names:
            try:
                (Path(root) / name).open("rb").close()
            except OSError as error:
                _check_machine(error)


def _check_machine(error: OSError) -> None:
    if error.errno in MACHINE:
        raise error


def _verify_picture(pictures: Folder, key: str) -> Iterator[Damage]:
    """Whether a scan's picture is a whole PNG, whose parts have checksums."""
    png = pictures.read_some([f"{key}.png"])[0] or b""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            picture.verify()  # of all parts; `load` leaves out those of voxels
        whole = png.endswith(END)  # which nobody reads
    except (OSError, SyntaxError, ValueError):
        whole = False
    if not whole:
        yield Damage(f"{THUMBNAILS}/{key}.png", "it differs from what was written or is missing")


def _verify_scan(store: Store, key: str, entry: Entry) -> Iterator[Damage]:
    """What is wrong with one scan."""
    try:
        if store.entry(key) != entry:
            yield Damage(key, "its attributes are not those in the index")
    except DataError:
        yield Damage(key, "its attributes differ from what was written")
    for level in range(len(store.levels(key))):
        parts: list[tuple[str, Callable[[], Any]]] = [("voxels", lambda at=level: store.read(key, level=at))]
        if entry.label is not None:
            parts.append(("label", lambda at=level: store.read_label(key, level=at)))
        if entry.privacy.removed:
            parts.append(("mask of blanked voxels", lambda at=level: store.read_removed(key, level=at)))
        for name, read in parts:
            try:
                read()
            except DataError:
                yield Damage(key, f"{name} of level {level} differ from what was written or are missing")
    if entry.label is not None:
        try:
            store.label_locations(key)
        except DataError:
            yield Damage(key, "attributes of its label cannot be read")


def _all(
    things: Iterable[Any], verify: Callable[[Any], list[Damage]], workers: int, count: int, unit: str
) -> list[Damage]:
    """Verify things, some at the same time; what is damaged comes in their order."""
    found: list[Damage] = []
    left = iter(things)
    with ThreadPoolExecutor(workers) as pool, Progress("verify", count, unit) as bar:
        while batch := list(itertools.islice(left, BATCH)):
            for damages in pool.map(verify, batch):
                found += damages
                bar.advance(1)
    return found


@config
class VerifyArgs:
    """Compare every byte of shards, or every voxel of a store, with its checksums.

    Attributes:
        path: A folder of shards or a store, or the URL of one.
        workers: How many tars or scans are read at the same time.
        remove: Whether to remove damaged scans and files of the index, or damaged tars with their indexes, so that the
            next `ingest` or `pack` makes them anew, and nothing else; no other run may write there meanwhile.
    """

    path: tyro.conf.Positional[Path]
    workers: int = 4
    remove: bool = False

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.workers >= 1, "workers", "at least 1", self.workers)


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep verify`; returns the exit status, 1 if anything is damaged."""
    given = parse(VerifyArgs, None, args, "python -m data_prep verify")
    folder = open_folder(given.path)
    is_store = folder.size("zarr.json") is not None
    what, verify = ("scans", verify_store) if is_store else ("shards", verify_shards)
    with _held(given.path, is_store) if given.remove else nullcontext():
        count, found = verify(given.path, given.workers)
        for damage in found:
            log.error("verify: %s: %s", damage.name, damage.what)
        told = {what: count, "damaged": len({damage.name for damage in found})}
        if given.remove:
            told["removed"] = _remove(folder, found)
    print(json.dumps(told))
    return 1 if found else 0


def _held(path: Path, is_store: bool) -> AbstractContextManager[None]:
    """Hold a local folder: what another run is replacing must not be taken for damage, and removed."""
    if url_of(path) is not None or not (is_store or (path / "manifest.json").is_file()):
        return nullcontext()  # no locks, or a folder of others
    return locked(path) if is_store else held(path, None)


def _remove(folder: Folder, found: Iterable[Damage]) -> int:
    """Remove what is damaged, and what says that it is whole before it; rows of a ledger `ingest` mends by itself."""
    # Of a tar and its index the name is the same, of a scan it is its id.
    names = {index_name(damage.name) for damage in found if damage.name != LEDGER}
    for name in sorted(names):
        if name.startswith((f"{INDEX_FOLDER}/", f"{THUMBNAILS}/")):
            folder.remove(name)
        elif name.endswith(".json"):
            folder.remove(name)
            folder.remove(name.replace(".index.json", ".tar"))
        else:
            folder.drop(name)
    return len(names)
