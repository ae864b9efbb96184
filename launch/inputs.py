"""Which files a store is grown from, remembered as hashes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from voxscale.config import config_hash
from voxscale.files import write_json


def generation(out: Path, name: str, files: Sequence[str]) -> str:
    """Name the set of files that a store is grown from.

    It stays the same while files are only added, so that only these are read. A
    file that was changed or taken away starts a new one: nothing of it may stay.

    Args:
        out: Folder of the chain, which remembers the files as hashes.
        name: Of the store, different for different folders and settings.
        files: Hash of each file, see `list_files`.
    """
    memory = out / "done" / f"{name}.files.json"
    known = json.loads(memory.read_text()) if memory.is_file() else {"generation": "", "files": []}
    grown = known["generation"] and set(known["files"]) <= set(files)
    now = known["generation"] if grown else config_hash(list(files))
    write_json(memory, {"generation": now, "files": list(files)})
    return str(now)


def list_files(roots: Sequence[Path]) -> list[str]:
    """Hash of name, size and time of every file, so that changed input is read again; no name leaves this function."""
    out: list[str] = []
    for root in roots:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            known = path.stat()
            line = f"{root}|{path.relative_to(root)}|{known.st_size}|{known.st_mtime_ns}"
            out.append(hashlib.sha256(line.encode()).hexdigest()[:16])
    return out
