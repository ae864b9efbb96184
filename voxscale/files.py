"""Writing that survives a crash: beside the target, flushed to disk, renamed."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.errors import DataError


def sync(path: Path) -> None:
    """Flush one file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush a folder and all that is in it to disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write plain values as indented JSON, as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one compressed `.npz`, as `write_bytes` does."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    write_bytes(path, buffer.getvalue())


def commit_folder(beside: Path, target: Path) -> None:
    """Flush a finished folder and rename it to its final name, replacing an older one."""
    sync_tree(beside)
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
        beside.rename(target)
        shutil.rmtree(old)
    else:
        beside.rename(target)
    sync(target.parent)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line and flush it to disk."""
    with path.open("a") as handle:
        handle.write(json.dumps(row) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line cut by a crash is dropped from the file and the result.

    Raises:
        DataError: If any line but the last is not JSON.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    good = 0
    data = path.read_bytes()
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            rows.append(json.loads(line))
        except ValueError:
            if good + len(line) < len(data):
                raise DataError(f"{path.name} line {number} must be JSON", "corrupt") from None
            with path.open("r+b") as handle:
                handle.truncate(good)
            break
        good += len(line)
    return rows


@contextmanager
def locked(folder: Path, patience_s: float = 10.0) -> Generator[None]:
    """Hold a folder for one process; the lock goes with the process, however it ends.

    Args:
        folder: Made if it is not there.
        patience_s: Seconds to wait for a holder that is just ending, such as the child of a killed launcher.

    Raises:
        DataError: If another live process still holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{folder.name} must be free, not in use by another live process; wait for it or end it", "busy"
                    ) from None
                time.sleep(0.1)
        yield
