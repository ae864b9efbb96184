"""The ledger of a store and the private list of sources, kept so that a killed ingest can go on."""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_prep.discover import Source
from data_prep.rows import Row, Rows, digest_of, line_of, lines_of
from data_prep.source import state_of
from data_prep.steps import Outcome, holds, verdict
from voxscale.ledger import LEDGER

SOURCES = "sources.jsonl"
STALE = "not_taken"
PRIVATE_FIELDS: Mapping[str, type] = {
    "path": str, "part": int, "parts": int, "row": int, "hash": int, "taken": int, "steps": dict,
}  # fmt: skip
_PLACE_BITS = 32
_NOWHERE = 2**44 - 1
"""Offset of a private row that is not there."""


class Ledger:
    """One row per volume of each input in the store, and where each row came from outside of it.

    The private row is written first and names the row's place and hash in the
    ledger, so an input counts as settled only when both are on disk. In memory
    are about 250 bytes for each row; the rows themselves are read when needed.

    Attributes:
        rows: The ledger's rows in the order of discovery.
        changed: Whether any row was written.
        ownerless: Rows whose input is gone, moved or no longer known, by id and kind: their places, and where
            the private list tells of them.
    """

    def __init__(self, store: Path, private: Path, before_change: Callable[[], None] | None) -> None:
        """Read both lists.

        Args:
            store: The store's folder.
            private: The folder of its secrets.
            before_change: Called before the first row is written; None never writes.
        """
        self._private = private / SOURCES
        self._before_change, self.changed = before_change, False
        mend = before_change is not None
        self.rows = Rows(store / LEDGER, mend)
        self.ownerless: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._known: dict[bytes, int] = {}
        self._end = 0
        for offset, line, row in lines_of(self._private, mend, PRIVATE_FIELDS):
            self._known[_digest(row["path"], row["part"])] = offset << _PLACE_BITS | row["row"]
            self._end = offset + len(line)

    def find_ownerless(self, sources: Sequence[Source]) -> None:
        """Fill `ownerless`, given the inputs of this run."""
        here = {_digest(source.files[0], 0) for source in sources}
        told = array("q", [-1]) * len(self.rows)
        owned = bytearray(len(self.rows))
        for offset, _, row in lines_of(self._private, mend=False, fields=PRIVATE_FIELDS):
            place = row["row"]
            if self._known[_digest(row["path"], row["part"])] >> _PLACE_BITS != offset or place >= len(owned):
                continue
            told[place] = offset
            owned[place] = _digest(row["path"], 0) in here or Path(row["path"]).exists()
        for place, known in enumerate(owned):
            if not known:
                name = self.rows.key(place), self.rows.verdict(place).kind
                self.ownerless.setdefault(name, []).append((place, told[place]))

    def place(self, source: Source, part: int = 0) -> int | None:
        """Where the row of a volume of an input stands, or None if it has none."""
        known = self._known.get(_digest(source.files[0], part))
        place = len(self.rows) if known is None else known & (1 << _PLACE_BITS) - 1
        return place if place < len(self.rows) else None

    def places(self, source: Source) -> list[int]:
        """Where the rows of all volumes of an input stand."""
        found = [self.place(source, part) for part in range(self._taken(source))]
        return [place for place in found if place is not None]

    def _taken(self, source: Source) -> int:
        first = self._told(source, 0)
        return 0 if first is None else int(first["taken"])

    def _told(self, source: Source, part: int) -> Row | None:
        """What is kept of a volume outside the store."""
        known = self._known.get(_digest(source.files[0], part))
        return None if known is None else self._line(known >> _PLACE_BITS)

    def _line(self, offset: int) -> Row | None:
        if offset == _NOWHERE:
            return None
        with self._private.open("rb") as handle:
            handle.seek(offset)
            return json.loads(handle.readline())

    def told(self, source: Source) -> list[Row]:
        """What is kept of each volume taken of an input outside the store; empty unless its rows are those meant."""
        found = [self._told(source, part) for part in range(self._taken(source))]
        rows = [row for row in found if row is not None and row["row"] < len(self.rows)]
        if len(rows) < len(found) or any(self.rows.digest(row["row"]) != row["hash"] for row in rows):
            return []
        return [row for row in rows if self.rows.verdict(row["row"]).rule != STALE]

    def find(
        self, source: Source, key: str, now: Mapping[str, str], limits: Mapping[str, float]
    ) -> tuple[int, Row] | None:
        """Place and private row of a volume of an input, if what they tell still holds.

        Args:
            source: The input.
            key: Id of the volume.
            now: Hashes of all steps.
            limits: Seconds and gigabytes that a reader may use.
        """
        for told in self.told(source):
            rule = self.rows.verdict(told["row"]).rule
            if self.rows.key(told["row"]) == key and holds(told["steps"], told["limit"], rule, now, limits):
                return told["row"], told
        return None

    def outcome(self, place: int, told: Row) -> Outcome:
        """What became of a volume, as its reader told."""
        row = self.rows.row(place)
        kept = {name: row[name] for name in ("status", "rule", "reason", "notes", "thumbnail", "entry")}
        if told["parts"] > 1 and told["part"] == 0:
            kept["notes"] = row["notes"][1:]  # the first one counts the volumes taken
        return Outcome(kept, told["parts"], told["steps"], told["limit"])

    def adopt(self, source: Source, key: str) -> None:
        """Give a new input the rows of a gone one with the same content, so that moved files stay one input."""
        rows = self.ownerless.get((key, source.kind))
        if self.place(source) is not None or not rows:
            return
        place, offset = rows.pop(0)
        told = None if offset < 0 else self._line(offset)
        self._known[_digest(source.files[0], 0)] = (_NOWHERE if told is None else offset) << _PLACE_BITS | place
        if told is None:
            return
        for part in range(1, told["taken"]):
            known = self._known.get(_digest(told["path"], part))
            if known is not None:
                self._known[_digest(source.files[0], part)] = known

    def write(self, source: Source, key: str | None, outcomes: Sequence[tuple[str, int, Outcome]]) -> None:
        """Write the rows of an input, one per volume taken, in the place of older ones if it has some.

        The first volume's row goes last: while it is missing the input is not settled.

        Args:
            source: The input.
            key: Its id; None if its bytes could not be read.
            outcomes: Id, number in its input and outcome of each volume taken.
        """
        gone = Outcome(verdict("rejected", STALE, "the settings do not take this volume of its input"))
        before = [(part, self.place(source, part)) for part in range(len(outcomes), self._taken(source))]
        stale = [("" if place is None else self.rows.key(place), part, gone) for part, place in before]
        outcomes = [*outcomes, *stale]
        kept = {"taken": len(outcomes), "content": key, **(source.state or state_of(source))}
        for part in reversed(range(len(outcomes))):
            self._write(source, part, outcomes[part], kept)

    def _write(self, source: Source, part: int, what: tuple[str, int, Outcome], kept: Row) -> None:
        """Write one row and what is kept of it outside the store."""
        own, number, told = what
        row = {"id": own, "kind": "part" if part else source.kind}
        row |= {name: told.row[name] for name in ("status", "rule", "reason")}
        row |= {"part": number, **{name: told.row[name] for name in ("notes", "thumbnail", "entry")}}
        place, line = self.place(source, part), line_of(row)
        same = place is not None and self.rows.digest(place) == digest_of(line)
        if not same and not self.changed:
            self.changed = True
            assert self._before_change is not None
            self._before_change()
        private = {"path": str(source.files[0]), "part": part, "parts": told.parts, **kept}
        private |= {"steps": dict(told.steps or {}), "limit": told.limit}
        private |= {"row": len(self.rows) if place is None else place, "hash": digest_of(line)}
        if self._told(source, part) != private:
            self._append(source, part, private)
        if place is None:
            self.rows.append(row)
        elif not same:
            self.rows.replace(place, row)

    def _append(self, source: Source, part: int, private: Row) -> None:
        line = line_of(private)
        with self._private.open("ab") as handle:
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        self._known[_digest(source.files[0], part)] = self._end << _PLACE_BITS | private["row"]
        self._end += len(line)


def _digest(path: str | Path, part: int) -> bytes:
    return hashlib.blake2b(f"{path}\0{part}".encode(errors="surrogateescape"), digest_size=16).digest()
