"""Which scans of a store are packed, chosen by columns of its index: of a million scans no entry is built."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.audit import shared
from data_prep.bricks import PackConfig, covered
from data_prep.groups import Candidate
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.index import ROWS, Index
from voxscale.index_table import numbers, to_table
from voxscale.store import Store, open_store

log = logging.getLogger("voxscale")

LOOKED_AT = ["id", "subject", "shape", "channels", "spacing", "foreground_box", "bytes", "face", "text", "ingest"]
SHOWN = ["shape", "affine", "percentiles"]
"""What is equal for the same scan in two stores, whose ids are keyed."""
DIGEST = 16
"""Bytes of a digest."""


def tables(store: Store, columns: list[str] | None) -> Iterator[Any]:
    """The accepted scans in order, as tables of up to `ROWS` rows: from the index, else from entries in memory."""
    entries = store.entries
    if isinstance(entries, Index):
        yield from (entries.read(number, columns) for number in range(entries.row_groups))
        return
    waiting = iter(entries.items())
    while some := list(islice(waiting, ROWS)):
        yield to_table(some)


def choose(
    store: Store, patch: Sequence[int], contract: InputContract, config: PackConfig, exclude: Path | None
) -> tuple[list[Candidate], int]:
    """The scans to pack, and how many were left out because a task holds them too.

    Args:
        store: Whose scans.
        patch: Patch size (z, y, x) in voxels of the contract's spacing.
        contract: Of the training to come.
        config: How scans are cut.
        exclude: Store of the task.

    Raises:
        DataError: If there is no scan to pack, or one that did not pass the privacy gate.
    """
    if not store.entries:
        raise DataError("store must hold at least one accepted volume; see its ledger.jsonl", "empty_store")
    tested = set[bytes]() if exclude is None else {row for t in tables(open_store(exclude), SHOWN) for row in shown(t)}
    twins = set[str]() if exclude is None else {twin.a for twin in shared(store.path, exclude)}
    planar = unchecked = untold = in_task = 0
    chosen: list[Candidate] = []
    for table in tables(store, [*LOOKED_AT, *(SHOWN[1:] if tested else [])]):
        keys = table.column("id").to_pylist()
        flat, known = numbers(table.column("shape"))[:, 0] == 1, np.zeros(len(keys), dtype=bool)
        if patch[0] == 1:  # patches of one slice are cut from 2D images too, but colours are not
            flat &= numbers(table.column("channels")) != 1
        if exclude is not None:
            found = [row in tested for row in shown(table)] if tested else known
            known = np.array([key in twins for key in keys]) | found
        verdicts = zip(table.column("face").to_pylist(), table.column("text").to_pylist(), strict=True)
        unchecked += sum("unchecked" in both for both in verdicts)
        untold += _untold(table, ~(known | flat))
        planar += int(flat.sum())
        in_task += int((known & ~flat).sum())
        subjects, sizes = table.column("subject").to_pylist(), _sizes(table, patch, contract, config).tolist()
        chosen += [Candidate(keys[n], subjects[n], sizes[n]) for n in np.flatnonzero(~(known | flat)).tolist()]
    _check(len(store.entries), len(chosen), planar, unchecked, in_task)
    if untold:
        log.warning("pack: %d scans do not say by which settings they were taken in; ingest again", untold)
    return chosen, in_task


def _untold(table: Any, chosen: NDArray[np.bool_]) -> int:
    """How many of the chosen scans an older version took in."""
    if "ingest" not in table.column_names:
        return int(chosen.sum())
    return int((table.column("ingest").is_null().to_numpy() & chosen).sum())


def _check(scans: int, chosen: int, planar: int, unchecked: int, in_task: int) -> None:
    """Refuse what cannot be packed, and tell what is left out."""
    if unchecked:
        raise DataError(
            f"store must have passed the privacy gate; {unchecked} of its scans have not: ingest with privacy.gate on",
            "not_checked",
        )
    if planar:
        log.warning(
            "pack: %d 2D images are left out; bricks are cut from volumes, slices from both but colours", planar
        )
    if planar == scans:
        said = "bricks are not cut from 2D images; plan with --dims 2, and without colours"
        raise DataError(f"store must hold at least one volume; {said}", "only_planar")
    if not chosen:
        raise DataError("store must hold scans that are not in the task as well; add unlabelled scans", "all_in_task")
    if in_task:
        log.warning("pack: %d scans are left out because they are in the task as well", in_task)


def shown(table: Any) -> list[bytes]:
    """What scans show, (rows,): grid and percentiles of values."""
    parts = [numbers(table.column(name)).astype(np.float64) for name in SHOWN]
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def _sizes(table: Any, patch: Sequence[int], contract: InputContract, config: PackConfig) -> NDArray[np.float64]:
    """Bytes that the bricks of each scan take, about: as many a voxel as in the store."""
    shapes, boxes = numbers(table.column("shape")), numbers(table.column("foreground_box")).reshape(-1, 3, 2)
    voxels = covered(shapes, boxes, numbers(table.column("spacing")), patch, contract, config)
    coarser = sum(8.0**-level for level in range(1, config.levels))
    return numbers(table.column("bytes")) * (voxels / shapes.prod(axis=1, dtype=np.float64) + coarser)


class Digests:
    """Hashes of all that is known of some scans, at 24 bytes a scan; one pass through the index makes them.

    Args:
        store: That holds them.
        keys: Ids of these scans.
    """

    def __init__(self, store: Store, keys: Sequence[str]) -> None:
        self._ids = np.sort(np.fromiter((int(key, 16) for key in keys), dtype=np.uint64, count=len(keys)))
        self._found = np.zeros((len(keys), DIGEST), dtype=np.uint8)
        for table in tables(store, None):
            ids = np.array([int(key, 16) for key in table.column("id").to_pylist()], dtype=np.uint64)
            here = np.flatnonzero(np.isin(ids, self._ids, assume_unique=True, kind="sort"))
            for place, row in zip(self._places(ids[here]), table.take(here).to_pylist(), strict=True):
                told = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
                self._found[place] = np.frombuffer(told[:DIGEST], dtype=np.uint8)

    def _places(self, ids: NDArray[np.uint64]) -> list[int]:
        return np.searchsorted(self._ids, ids).tolist()

    def of(self, keys: Sequence[str]) -> dict[str, str]:
        """The digest of each of some scans, in hexadecimal digits."""
        places = self._places(np.array([int(key, 16) for key in keys], dtype=np.uint64))
        return {key: self._found[place].tobytes().hex() for key, place in zip(keys, places, strict=True)}
