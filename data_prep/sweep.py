"""Removing what no row of the ledger has: scans and pictures of inputs that are gone or rejected now."""

import re
import shutil
from pathlib import Path

from data_prep.rows import Rows
from voxscale.folder import open_folder

THUMBNAILS = "thumbnails"
_ID = re.compile(r"[0-9a-f]{16}")


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
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
