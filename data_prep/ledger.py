"""The ledger of a store and the private list of sources, kept so that a killed ingest can go on."""

import json
import shutil
from pathlib import Path
from typing import Any

from data_prep.discover import Source
from voxscale.config import config_hash
from voxscale.files import append_line, read_lines, write_text
from voxscale.store import LEDGER

SOURCES = "sources.jsonl"


class Ledger:
    """One row per input in the store, and where each row came from outside of it.

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
        self.rows = read_lines(store / LEDGER)
        self._known = {row["path"]: row for row in read_lines(private / SOURCES)}
        owned = {row["row"] for path, row in self._known.items() if Path(path).exists()}
        self.ownerless = [place for place in range(len(self.rows)) if place not in owned]

    def place(self, source: Source) -> int | None:
        """Where the row of an input stands, or None if it has none."""
        known = self._known.get(str(source.files[0]))
        return None if known is None or known["row"] >= len(self.rows) else int(known["row"])

    def adopt(self, source: Source, key: str) -> None:
        """Give a new input the row of a gone one with the same content, so that moved files stay one input."""
        if self.place(source) is not None:
            return
        for place in self.ownerless:
            if (self.rows[place]["id"], self.rows[place]["kind"]) == (key, source.kind):
                self._known[str(source.files[0])] = {"path": str(source.files[0]), "row": place}
                self.ownerless.remove(place)
                return

    def settled(self, source: Source) -> bool:
        """Whether an input needs no second look.

        It does if it or the settings changed, if its folder is gone from the
        store, or if it was a duplicate (its twin may have changed).
        """
        place = self.place(source)
        if place is None:
            return False
        row, known = self.rows[place], self._known[str(source.files[0])]
        whole = row["status"] != "accepted" or (self._store / row["id"] / "zarr.json").exists()
        same = known == self._private_row(source, place, row)
        return whole and same and row["rule"] != "duplicate"

    def write(self, source: Source, row: dict[str, Any]) -> None:
        """Write the row of an input, in the place of an older one if it has one."""
        place = self.place(source)
        at = len(self.rows) if place is None else place
        private = self._private_row(source, at, row)
        if self._known.get(private["path"]) != private:
            append_line(self._private / SOURCES, private)
            self._known[private["path"]] = private
        if place is None:
            self.rows.append(row)
            append_line(self._store / LEDGER, row)
        elif self.rows[place] != row:
            old, self.rows[place] = self.rows[place], row
            write_text(self._store / LEDGER, "".join(json.dumps(each) + "\n" for each in self.rows))
            self._forget(old)

    def _forget(self, row: dict[str, Any]) -> None:
        """Remove a scan that no row accepts any more."""
        accepted = {each["id"] for each in self.rows if each["status"] == "accepted"}
        folder = self._store / row["id"]
        if row["status"] == "accepted" and row["id"] not in accepted and folder.exists():
            gone = folder.with_name(f".{folder.name}.old")
            folder.rename(gone)
            shutil.rmtree(gone)

    def _private_row(self, source: Source, place: int, row: dict[str, Any]) -> dict[str, Any]:
        """What is kept of an input outside the store."""
        states = [file.stat() for file in (*source.files, *source.label) if file.exists()]
        return {
            "path": str(source.files[0]),
            "files": len(source.files) + len(source.label),
            "size": sum(state.st_size for state in states),
            "mtime_ns": max((state.st_mtime_ns for state in states), default=0),
            "settings": self._settings,
            "row": place,
            "hash": config_hash(json.loads(json.dumps(row))),
        }
