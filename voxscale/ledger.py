"""The ledger of a store, for reading: its lines, the accepted scans among them, runs of such."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxscale.config import from_dict
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.folder import open_folder, url_of

LEDGER = "ledger.jsonl"
PIECE = 1 << 24
"""Bytes that are read at a time of a ledger behind a URL."""

_HEAD = re.compile(rb'\{"id": "[0-9a-f]*", "kind": "[a-z]+", "status": "([a-z]+)"')
"""How `data_prep.ledger` begins a row: most need not be parsed."""
_ID = re.compile(r"[0-9a-f]*")


def lines(path: Path) -> Iterator[bytes]:
    """Lines of a store's ledger, the last one left out while its writer is not done with it; none if there is none.

    Args:
        path: The store, or its URL.
    """
    if url_of(path) is None:
        try:
            handle = (path / LEDGER).open("rb")
        except FileNotFoundError:
            return
        with handle:
            yield from (line for line in handle if line.endswith(b"\n"))
        return
    blob, start, rest = open_folder(path).blob(LEDGER), 0, b""
    while True:
        try:
            (piece,) = blob.ranges([(start, start + PIECE)])  # short at its end, so that nobody asks for its size
        except FileNotFoundError:
            return
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(piece) < PIECE:
            return
        start += PIECE


def accepted(path: Path) -> Iterator[tuple[str, Entry]]:
    """Id and entry of every accepted scan, from the ledger.

    Args:
        path: The store, or its URL.

    Raises:
        DataError: With reason `corrupt`.
    """
    for number, line in enumerate(lines(path), 1):
        if is_accepted(line, number):
            row = parse_row(line, number)
            yield row["id"], from_dict(Entry, row["entry"], "entry")


def is_accepted(line: bytes, number: int) -> bool:
    """Whether a line is of an accepted scan; parsed only if it does not begin as rows do.

    Raises:
        DataError: With reason `corrupt`.
    """
    found = _HEAD.match(line)
    return (found.group(1).decode() if found else parse_row(line, number)["status"]) == "accepted"


def parse_row(line: bytes, number: int) -> dict[str, Any]:
    """One row.

    Args:
        line: Its line.
        number: Of the line, from 1.

    Raises:
        DataError: With reason `corrupt`.
    """
    try:
        row: Any = json.loads(line)
        words = all(isinstance(row.get(name, ""), str) for name in ("id", "kind")) and isinstance(row["status"], str)
        described = row["status"] != "accepted" or (isinstance(row["entry"], dict) and _ID.fullmatch(row["id"]))
        if words and described and isinstance(row.get("rule", ""), (str, type(None))):
            return row
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(
        f"{LEDGER} line {number} must be as it was written; remove the file and ingest again", "corrupt"
    ) from None


@dataclass(frozen=True, slots=True)
class Run:
    """Accepted scans that follow one another in a ledger.

    Attributes:
        rows: How many.
        digest: SHA-256 of their lines.
        ledger: The file.
        start: Byte at which the first of their lines begins.
        line: Number of that line, from 1.
    """

    rows: int
    digest: str
    ledger: Path
    start: int
    line: int

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Their ids and entries, read anew."""
        left = self.rows
        with self.ledger.open("rb") as handle:
            handle.seek(self.start)
            number = self.line
            while left:
                line = handle.readline()
                if is_accepted(line, number):
                    row = parse_row(line, number)
                    yield row["id"], from_dict(Entry, row["entry"], "entry")
                    left -= 1
                number += 1


def runs(ledger: Path, most: int) -> Iterator[Run]:
    """Part the accepted scans of a local ledger into runs of `most`; reads its bytes once, parsing none of them."""
    rows, digest, start, first, place = 0, hashlib.sha256(), 0, 1, 0
    for number, line in enumerate(lines(ledger.parent), 1):
        if is_accepted(line, number):
            if not rows:
                start, first = place, number
            rows += 1
            digest.update(line)
            if rows == most:
                yield Run(rows, digest.hexdigest(), ledger, start, first)
                rows, digest = 0, hashlib.sha256()
        place += len(line)
    if rows:
        yield Run(rows, digest.hexdigest(), ledger, start, first)
