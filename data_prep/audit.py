"""Copies within a store, and scans that are also in a task: `python -m data_prep audit STORE --against TASK`."""

import json
import logging
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tyro

from data_prep.descriptor import Descriptor, describe, read_descriptor
from data_prep.similar import LEAST, Pair, Table, find_pairs, make_table
from voxscale.config import config, parse, require
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import json_bytes, remove_tree
from voxscale.folder import open_folder, url_of
from voxscale.store import Store, open_store

log = logging.getLogger("voxscale")

DESCRIPTOR = "descriptor.bin"
"""File of each scan's folder that holds its descriptor."""
DUPLICATES, AUDIT = "duplicates.json", "audit.json"
AT_ONCE = 256
"""Descriptors that are asked for at the same time."""
LEAK = 3
"""Exit status if the task shares scans with the store."""


@dataclass(frozen=True, slots=True)
class Twin:
    """Two scans that show the same.

    Attributes:
        a: Id of the first; in an audit that of the store.
        b: Id of the second; in an audit that of the task.
        score: Places that look and lie alike, of at most 128.
    """

    a: str
    b: str
    score: int


def table_of(store: Store, folder: Path) -> Table:
    """The descriptors of all accepted scans, in their order; one that is missing is made from the scan.

    Args:
        store: The store.
        folder: Where the large arrays are kept while they are needed; memory then holds 60 bytes a scan.
    """
    folder.mkdir(parents=True)
    return make_table(_descriptors(store), len(store.entries), folder)


def _descriptors(store: Store) -> Iterator[Descriptor]:
    folder, keys = open_folder(store.path), iter(store.entries)
    while some := list(islice(keys, AT_ONCE)):
        for key, data in zip(some, folder.read_some([f"{key}/{DESCRIPTOR}" for key in some]), strict=True):
            known = None if data is None else read_descriptor(data)
            volume = store.volume(key) if known is None else None
            yield known if volume is None else describe(volume.values(), volume.spacing)  # type: ignore[misc]


@contextmanager
def _scratch(path: Path) -> Generator[Path]:
    """A folder that is gone afterwards: in a local store, else on this machine."""
    folder = Path(tempfile.mkdtemp(dir=path if url_of(path) is None else None, prefix=".", suffix=".tmp"))
    try:
        yield folder
    finally:
        remove_tree(folder)


def near_duplicates(path: Path, least: int = LEAST) -> tuple[list[Twin], list[str]]:
    """Find scans of one store that show the same; volumes of one series are not compared.

    Args:
        path: The store.
        least: Fewest places that must agree.

    Returns:
        Pairs, best first, and the ids of scans that show too little to be compared.
    """
    store = open_store(path)
    keys = list(store.entries)
    with _scratch(path) as scratch:
        pairs, counts = _within(store, scratch, least)
    little = [key for key, count in zip(keys, counts, strict=True) if count < 2 * least]
    twins = [Twin(keys[pair.a], keys[pair.b], pair.score) for pair in pairs]
    return [twin for twin in twins if not _one_series(store.entries[twin.a], store.entries[twin.b])], little


def _within(store: Store, scratch: Path, least: int) -> tuple[list[Pair], list[int]]:
    """Pairs of one store, and how many places of each scan count; files in the scratch folder are closed after."""
    table = table_of(store, scratch / "all")
    return find_pairs(table, least=least), table.counts.tolist()


def _between(mine: Store, theirs: Store, scratch: Path, least: int) -> list[Pair]:
    """Pairs of a scan of theirs and one of mine; files in the scratch folder are closed after."""
    asked, known = table_of(theirs, scratch / "task"), table_of(mine, scratch / "store")
    return find_pairs(asked, known, least)


def _one_series(a: Entry, b: Entry) -> bool:
    return a.series is not None and a.series == b.series


def shared(path: Path, task: Path, least: int = LEAST) -> list[Twin]:
    """Scans of a store that are also in a task's store, best first.

    Args:
        path: The store.
        task: The task's store.
        least: Fewest places that must agree.
    """
    mine, theirs = open_store(path), open_store(task)
    with _scratch(path) as scratch:
        pairs = _between(mine, theirs, scratch, least)
    a, b = list(mine.entries), list(theirs.entries)
    return [Twin(a[pair.b], b[pair.a], pair.score) for pair in pairs]


def read_twins(path: Path, name: str) -> dict[str, Any] | None:
    """What `duplicates.json` or `audit.json` of a store tell; None if it is not there.

    Raises:
        DataError: With reason `corrupt`.
    """
    (found,) = open_folder(path).read_some([name])
    if found is None:
        return None
    try:
        told = json.loads(found)
        pairs = [Twin(str(pair["a"]), str(pair["b"]), int(pair["score"])) for pair in told["pairs"]]
        return {"pairs": [asdict(pair) for pair in pairs], "too_little": list(told.get("too_little", ()))}
    except (ValueError, KeyError, TypeError, AttributeError):
        again = "ingest" if name == DUPLICATES else "audit"
        raise DataError(f"{name} must be as it was written; {again} again", "corrupt") from None


def has_twins(path: Path) -> bool:
    """Whether a store's `duplicates.json` is there and whole."""
    try:
        return read_twins(path, DUPLICATES) is not None
    except DataError:
        return False


def write_duplicates(path: Path) -> list[Twin]:
    """Find copies within a store and write them to `duplicates.json`."""
    twins, little = near_duplicates(path)
    told = {"least": LEAST, "pairs": [asdict(twin) for twin in twins], "too_little": little}
    open_folder(path).write(DUPLICATES, json_bytes(told))
    return twins


def audit(path: Path, against: Path, least: int = LEAST) -> list[Twin]:
    """List scans of a store that a task holds too, and write them to `audit.json`.

    Args:
        path: The store.
        against: A store, or a folder of scans, which is read into a store that is thrown away.
        least: Fewest places that must agree.
    """
    require(url_of(against) is not None or against.is_dir(), "audit.against", "a folder that exists", against.name)
    if open_folder(against).size("zarr.json") is not None:
        twins = shared(path, against, least)
    else:
        from data_prep.config import IngestConfig
        from data_prep.ingest import ingest

        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "task"
            counts = ingest([against], store, IngestConfig(labels="ignore", duplicates="off"))
            if not counts.accepted:
                raise DataError("audit.against must hold at least one readable scan", "empty_store")
            twins = shared(path, store, least)
    open_folder(path).write(AUDIT, json_bytes({"least": least, "pairs": [asdict(twin) for twin in twins]}))
    return twins


@config
class AuditArgs:
    """List scans of a store that are also in a task.

    Attributes:
        store: The store to pretrain on.
        against: Store of the task, or folder of its scans.
        least: Fewest places that must look and lie alike.
    """

    store: tyro.conf.Positional[Path]
    against: Path
    least: int = LEAST

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.least >= 1, "audit.least", "at least 1", self.least)


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep audit`: prints one JSON line; 0 without shared scans, 3 with."""
    given = parse(AuditArgs, None, args, "python -m data_prep audit")
    twins = audit(given.store, given.against, given.least)
    told: Mapping[str, Any] = {"shared": len({twin.a for twin in twins}), "pairs": len(twins), "least": given.least}
    print(json.dumps(told))
    if twins:
        log.warning("audit: %d scans of the store are in the task too; pack --exclude leaves them out", told["shared"])
    return LEAK if twins else 0
