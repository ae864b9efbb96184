"""Removing what no row of the ledger has: scans and pictures of inputs that are gone or rejected now."""

import re
from pathlib import Path

from data_prep.rows import Rows
from voxscale.errors import DataError
from voxscale.files import remove_tree
from voxscale.folder import open_folder

THUMBNAILS = "thumbnails"
_ID = re.compile(r"[0-9a-f]{16}")
_OURS = re.compile(
    rf"{_ID.pattern}|parts|index|report|{THUMBNAILS}|ledger\.jsonl|duplicates\.json|audit\.json"
    r"|\.lock|\..+\.[\w-]+\.\d+\.(tmp|old)|\.nfs.*|\.snapshots?|lost\+found"
)
"""What may lie in the folder of a store whose attributes are not written yet, and what file systems put into it."""


def check_own(store: Path) -> None:
    """Refuse a folder that holds other things: some of what lies in a store is removed by name.

    Args:
        store: A folder, which need not be there.

    Raises:
        DataError: With reason `not_a_store`.
    """
    if not store.is_dir() or (store / "zarr.json").is_file():
        return
    if any(_OURS.fullmatch(path.name) is None for path in store.iterdir()):
        raise DataError(f"{store.name} must be a store or an empty folder, not one with other files", "not_a_store")


def sweep(store: Path, rows: Rows) -> None:
    """Remove scan folders without an accepted row and pictures without a row that has one.

    Args:
        store: The store, or its URL.
        rows: The ledger.
    """
    accepted: set[int] = set()
    shown: set[int] = set()
    for place in range(len(rows)):
        verdict = rows.verdict(place)
        if verdict.status == "accepted":
            accepted.add(int(rows.key(place), 16))
        if verdict.thumbnail:
            shown.add(int(rows.key(place), 16))
    folder = open_folder(store)
    for name in list(folder.folders()):
        if _ID.fullmatch(name) and int(name, 16) not in accepted:
            folder.drop(name)
    pictures = open_folder(store / THUMBNAILS)
    for name in list(pictures.names()):
        key = name.removesuffix(".png")
        if _ID.fullmatch(key) and int(key, 16) not in shown:
            pictures.remove(name)


def clear_left_over(store: Path) -> None:
    """Remove what an earlier run was writing in the store's own folder when it was killed; workers write elsewhere."""
    for leftover in [*store.glob(".*.tmp"), *store.glob(".*.old")]:
        remove_tree(leftover) if leftover.is_dir() else leftover.unlink()
