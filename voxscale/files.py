"""Writing that survives a crash: beside the target, flushed to disk, renamed."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from voxscale.errors import DataError

log = logging.getLogger("voxscale")


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


NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks answer."""
LOCK = ".lock"
"""File by which a folder is held; only who holds it may remove it."""
HOST = re.sub(r"[^\w-]", "-", socket.gethostname())
"""This machine, as it stands in names of temporary files."""

_TEMPORARY = re.compile(r"\..+\.([\w-]+)\.(\d+)\.(tmp|old)")


def temporary(path: Path, scratch: Path | None = None) -> Path:
    """A hidden name beside a file or folder that no process of any machine uses at the same time.

    Args:
        path: The final name.
        scratch: Another folder of the same file system to put it in.
    """
    return (scratch or path.parent) / f".{path.name}.{HOST}.{os.getpid()}.tmp"


def is_left_over(path: Path, longest_s: float, now: float) -> bool:
    """Whether a name is temporary and whoever made it is gone.

    A process of this machine is asked for; of another machine it is only known
    that nobody works on one name for longer than `longest_s`.

    Args:
        path: Any file or folder.
        longest_s: Seconds after which a temporary name of another machine is given up.
        now: Time by the clock of the file system, as a fresh file's mtime gives it.
    """
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    if found.group(1) == HOST:
        return not Path(f"/proc/{found.group(2)}").exists()
    try:
        return now - path.stat().st_mtime > longest_s
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: Path, scratch: Path | None = None) -> Generator[IO[bytes]]:
    """Write a file so that a reader sees the old one or the whole new one, never a part; yields what to write to.

    Args:
        path: The file.
        scratch: Folder of the same file system for the unfinished file; None takes the file's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(path, scratch)
    try:
        with beside.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write a file as `replacing` does."""
    with replacing(path, scratch) as handle:
        handle.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write plain values as indented JSON, as `write_bytes` does."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Plain values as `write_json` writes them."""
    return (json.dumps(value, indent=1) + "\n").encode()


def json_crc(told: Mapping[str, Any]) -> int:
    """CRC-32C of what a JSON object says, whatever the order and the spaces of its text."""
    return int(google_crc32c.value(json.dumps(told, sort_keys=True).encode()))


def indented(value: object, by: int, depth: int = 0) -> str:
    """What `json.dumps(value, indent=by)` gives, without Python's slow way there: flat parts go to its compiled one."""
    if not (isinstance(value, (dict, list, tuple)) and value):
        return json.dumps(value)
    parts = cast(Collection[object], value.values() if isinstance(value, dict) else value)
    gap = "\n" + " " * by * (depth + 1)
    if any(isinstance(part, (dict, list, tuple)) for part in parts):
        texts = [indented(part, by, depth + 1) for part in parts]
        if isinstance(value, dict):
            texts = [f"{json.dumps(str(key))}: {text}" for key, text in zip(cast(Any, value), texts, strict=True)]
        inner = f",{gap}".join(texts)
    else:
        inner = json.dumps(value, separators=(f",{gap}", ": "))[1:-1]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}{gap}{inner}{gap[: len(gap) - by]}{last}"


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one compressed `.npz`, as `write_bytes` does."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    write_bytes(path, buffer.getvalue())


def commit_folder(beside: Path, target: Path) -> None:
    """Flush a finished folder and rename it to its final name, replacing an older one.

    Several processes may commit the same folder at once: each puts its own in
    the place of another's, and the last one stays, whole.
    """
    sync_tree(beside)
    old = beside.with_name(f"{beside.name.removesuffix('.tmp')}.old")
    while True:
        try:
            beside.rename(target)
            break
        except OSError as error:
            # Some network file systems tell any failure as one that is not permitted.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not target.is_dir():
                raise
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
            target.rename(old)
            remove_tree(old)
    sync(target.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder as far as that is possible now; what cannot go yet is left to a later sweep.

    A network file system keeps a removed file under a hidden name of its own while a process has it open, so the
    folder is not empty; and another process may be removing the same folder.
    """

    def later(_remove: object, _path: str, error: BaseException) -> None:
        if not (isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EBUSY, errno.ENOENT)):
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=later)
    else:
        shutil.rmtree(folder, onerror=lambda remove, path, info: later(remove, path, info[1]))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def append_line(path: Path, row: dict[str, Any]) -> bytes:
    """Append one JSON line and flush it to disk; returns it.

    Raises:
        OSError: If it cannot be written, such as on a full disk; no part of it stays, so it may be appended later.
            Where somebody else has appended meanwhile it stays as it is.
    """
    line = json.dumps(row).encode() + b"\n"
    with path.open("ab", buffering=0) as handle:
        before, written = handle.tell(), 0
        try:
            while written < len(line):
                written += handle.write(line[written:])
            os.fsync(handle.fileno())
        except OSError:
            if os.fstat(handle.fileno()).st_size == before + written:  # nobody else has appended since
                handle.truncate(before)
            raise
    return line


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

    Where the file system knows no locks, a warning says so and the work goes on: what is written has names of its
    own until it is renamed, so two that work on one folder cost time, and no result.

    Args:
        folder: Made if it is not there.
        patience_s: Seconds to wait for a holder that is just ending, such as the child of a killed launcher.

    Raises:
        DataError: If another live process still holds it.
    """
    with _lock_of(folder, time.monotonic() + patience_s):
        yield


def _lock_of(folder: Path, deadline: float) -> IO[bytes]:
    """The lock file of a folder, held; one that its holder removed before it ended is made anew."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = (folder / LOCK).open("wb")
        except FileNotFoundError:  # the folder went with the lock of another
            if time.monotonic() > deadline:
                raise
            continue
        try:
            _hold(handle, folder.name, deadline)
            if os.fstat(handle.fileno()).st_nlink:
                return handle
        except BaseException:
            handle.close()
            raise
        handle.close()


def _hold(handle: IO[bytes], name: str, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return log.warning("%s cannot be locked here (%s); start no second one", name, error.strerror)
            if time.monotonic() > deadline:
                raise DataError(
                    f"{name} must be free, not in use by another live process; wait for it or end it", "busy"
                ) from None
            time.sleep(0.1)
