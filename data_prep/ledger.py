"""The ledger of a store and the private list of sources, kept so that a killed ingest can go on."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.discover import Source
from voxscale.config import config_hash
from voxscale.files import append_line, read_lines, write_text
from voxscale.store import LEDGER

SOURCES = "sources.jsonl"
THUMBNAILS = "thumbnails"
FLUSH_S = 10.0
"""Seconds after which replaced rows are written; a new row is written at once."""

Row = dict[str, Any]


class Ledger:
    """One row per volume of each input in the store, and where each row came from outside of it.

    The private row is written first and names the row's place and hash in the
    ledger, so an input counts as settled only when both are on disk.

    Attributes:
        rows: The ledger's rows in the order of discovery.
        ownerless: Places of rows whose input is gone, moved or no longer known.
    """

    def __init__(self, store: Path, private: Path, settings: str) -> None:
        """Read both lists.

        Args:
            store: The store's folder.
            private: The folder of its secrets.
            settings: Hash of the settings that decide what is accepted.
        """
        self._store, self._private, self._settings = store, private, settings
        self.rows: list[Row] = read_lines(store / LEDGER)
        self._known = {(row["path"], row["part"]): row for row in read_lines(private / SOURCES)}
        owned = {row["row"] for (path, _), row in self._known.items() if Path(path).exists()}
        self._gone: list[Row] = []
        self._flushed = time.monotonic()
        self.ownerless = [place for place in range(len(self.rows)) if place not in owned]

    def place(self, source: Source, part: int = 0) -> int | None:
        """Where the row of a volume of an input stands, or None if it has none."""
        known = self._known.get((str(source.files[0]), part))
        return None if known is None or known["row"] >= len(self.rows) else int(known["row"])

    def places(self, source: Source) -> list[int]:
        """Where the rows of all volumes of an input stand."""
        known = self._known.get((str(source.files[0]), 0))
        found = [self.place(source, part) for part in range(known.get("taken", 1) if known else 0)]
        return [place for place in found if place is not None]

    def adopt(self, source: Source, key: str) -> None:
        """Give a new input the row of a gone one with the same content, so that moved files stay one input."""
        if self.place(source) is not None:
            return
        for place in self.ownerless:
            if (self.rows[place]["id"], self.rows[place]["kind"]) == (key, source.kind):
                row = {"path": str(source.files[0]), "part": 0, "row": place, "taken": 1}
                self._known[row["path"], 0] = row
                self.ownerless.remove(place)
                return

    def settled(self, source: Source) -> bool:
        """Whether an input needs no second look.

        It does if it or the settings changed, if its folder is gone from the
        store, or if it was a duplicate (its twin may have changed).
        """
        known = self._known.get((str(source.files[0]), 0))
        return known is not None and all(self._settled(source, part) for part in range(known.get("taken", 1)))

    def _settled(self, source: Source, part: int) -> bool:
        place = self.place(source, part)
        if place is None:
            return False
        row, known = self.rows[place], self._known[str(source.files[0]), part]
        whole = row["status"] != "accepted" or (self._store / row["id"] / "zarr.json").exists()
        same = known == self._private_row(source, part, known.get("taken", 1), place, row)
        return whole and same and row["rule"] != "duplicate"

    def write(self, source: Source, rows: Sequence[Row]) -> None:
        """Write the rows of an input, one per volume taken, in the place of older ones if it has some.

        The first volume's row goes last: while it is missing the input is not settled.
        """
        before = self._known.get((str(source.files[0]), 0), {}).get("taken", 1)
        rows = [*rows, *(self._stale(source, part) for part in range(len(rows), before))]
        for part in reversed(range(len(rows))):
            self._write(source, part, len(rows), rows[part])

    def _stale(self, source: Source, part: int) -> Row:
        """Row of a volume that was taken under other settings and is not any more."""
        place = self.place(source, part)
        key = "" if place is None else self.rows[place]["id"]
        reason = "the settings do not take this volume of its input"
        row = {"id": key, "kind": "part", "status": "rejected", "rule": "not_taken", "reason": reason}
        return row | {"part": part, "notes": [], "thumbnail": False, "entry": None}

    def _write(self, source: Source, part: int, taken: int, row: Row) -> None:
        row = json.loads(json.dumps(row))  # as it will be read back
        place = self.place(source, part)
        at = len(self.rows) if place is None else place
        private = self._private_row(source, part, taken, at, row)
        if self._known.get((private["path"], part)) != private:
            append_line(self._private / SOURCES, private)
            self._known[private["path"], part] = private
        if place is None:
            self.rows.append(row)
            append_line(self._store / LEDGER, row)
        elif self.rows[place] != row:
            self._gone.append(self.rows[place])
            self.rows[place] = row
            if time.monotonic() - self._flushed > FLUSH_S:
                self.flush()

    def flush(self) -> None:
        """Write rows that were replaced, then remove scans and pictures that no row has any more.

        Until then the ledger on disk holds the older rows, whose hashes differ
        from those in the private list: after a crash they are settled again.
        """
        if not self._gone:
            return
        write_text(self._store / LEDGER, "".join(json.dumps(each) + "\n" for each in self.rows))
        accepted = {each["id"] for each in self.rows if each["status"] == "accepted"}
        pictures = {each["id"] for each in self.rows if each["thumbnail"]}
        for row in self._gone:
            folder = self._store / row["id"]
            if row["status"] == "accepted" and row["id"] not in accepted and folder.exists():
                gone = folder.with_name(f".{folder.name}.old")
                folder.rename(gone)
                shutil.rmtree(gone)
            if row["thumbnail"] and row["id"] not in pictures:
                (self._store / THUMBNAILS / f"{row['id']}.png").unlink(missing_ok=True)
        self._gone.clear()
        self._flushed = time.monotonic()

    def _private_row(self, source: Source, part: int, taken: int, place: int, row: Row) -> Row:
        """What is kept of an input outside the store."""
        states = [file.stat() for file in (*source.files, *source.label) if file.exists()]
        return {
            "path": str(source.files[0]),
            "part": part,
            "taken": taken,
            "files": len(source.files) + len(source.label),
            "size": sum(state.st_size for state in states),
            "mtime_ns": max((state.st_mtime_ns for state in states), default=0),
            "settings": self._settings,
            "row": place,
            "hash": config_hash(row),
        }
