"""Which files a store is grown from, remembered as hashes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxscale.config import config_hash
from voxscale.files import write_json


@dataclass(frozen=True, slots=True)
class Listing:
    """Files below some folders; no name leaves it.

    Attributes:
        named: Hash of each file's folder and name.
        dated: Hash of the same, its size and its time, so that what may have changed is looked at again.
    """

    named: tuple[str, ...]
    dated: tuple[str, ...]


def generation(out: Path, name: str, files: Sequence[str]) -> str:
    """Name the set of files that a store is grown from.

    It stays the same while files are added, touched or changed: the store reads
    what is new in its place. A file that was taken away starts a new one:
    nothing of it may stay.

    Args:
        out: Folder of the chain, which remembers the files as hashes.
        name: Of the store, different for different folders and settings.
        files: Hash of each file's name, see `Listing`.
    """
    memory = out / "done" / f"{name}.files.json"
    known = json.loads(memory.read_text()) if memory.is_file() else {"generation": "", "files": []}
    grown = known["generation"] and set(known["files"]) <= set(files)
    now = known["generation"] if grown else config_hash([known["generation"], *files])
    write_json(memory, {"generation": now, "files": list(files)})
    return str(now)


def list_files(roots: Sequence[Path]) -> Listing:
    """All files below some folders."""
    named: list[str] = []
    dated: list[str] = []
    for root in roots:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            known, line = path.stat(), f"{root}|{path.relative_to(root)}"
            named.append(_hash(line))
            dated.append(_hash(f"{line}|{known.st_size}|{known.st_mtime_ns}"))
    return Listing(tuple(named), tuple(dated))


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode(errors="surrogateescape")).hexdigest()[:16]
