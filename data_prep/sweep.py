"""Removing what no row of the ledger has: scans and pictures of inputs that are gone or rejected now."""

import re
import shutil
from pathlib import Path

from data_prep.rows import Rows

THUMBNAILS = "thumbnails"
_ID = re.compile(r"[0-9a-f]{16}")


def sweep(store: Path, rows: Rows) -> None:
    """Remove scan folders without an accepted row and pictures without a row that has one."""
    accepted: set[int] = set()
    shown: set[int] = set()
    for place in range(len(rows)):
        verdict = rows.verdict(place)
        if verdict.status == "accepted":
            accepted.add(int(rows.key(place), 16))
        if verdict.thumbnail:
            shown.add(int(rows.key(place), 16))
    for folder in store.iterdir():
        if _ID.fullmatch(folder.name) and int(folder.name, 16) not in accepted:
            gone = folder.with_name(f".{folder.name}.old")
            folder.rename(gone)
            shutil.rmtree(gone)
    for picture in (store / THUMBNAILS).glob("*.png"):
        if _ID.fullmatch(picture.stem) and int(picture.stem, 16) not in shown:
            picture.unlink()


def clear_left_over(store: Path) -> None:
    """Remove what an earlier run was writing in the store's own folder when it was killed; workers write elsewhere."""
    for leftover in [*store.glob(".*.tmp"), *store.glob(".*.old")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
