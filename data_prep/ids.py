"""Anonymous names: ids from content, subjects from keyed hashes."""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import read_csv
from voxscale.config import require
from voxscale.errors import DataError
from voxscale.files import sha256_file, sync, temporary
from voxscale.folder import open_folder
from voxscale.store_root import read_root, write_root

ID_DIGITS = 16
KEY_BYTES = 32


def content_id(image: Sequence[Path], label: Sequence[Path] = ()) -> str:
    """Id of a scan: the first 16 hexadecimal digits of the SHA-256 of its bytes.

    Several files (a DICOM series, a header with its data) count as their
    sorted digests, so their names and order do not matter; a label is
    appended as a second digest, its files (masks of one class each) in order.

    Args:
        image: Files of the image.
        label: Files of its label, if it has one.

    Raises:
        OSError: If a file cannot be read.
    """
    digests = [_digest(sorted(map(sha256_file, image)))] + ([_digest([sha256_file(f) for f in label])] if label else [])
    return (digests[0] if len(digests) == 1 else hashlib.sha256("+".join(digests).encode()).hexdigest())[:ID_DIGITS]


def part_id(key: str, part: int) -> str:
    """Id of a further volume of an input whose first has the given id."""
    return hashlib.sha256(f"{key}+{part}".encode()).hexdigest()[:ID_DIGITS]


def _digest(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def private_folder(store: Path) -> Path:
    """The folder of a store's secrets, beside it; made on first use, open to its owner alone."""
    private = store.with_name(f"{store.name}.private")
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    return private


def load_key(private: Path, begun: Callable[[], bool] = lambda: False) -> bytes:
    """The store's secret key; made on first use, readable by its owner alone.

    Of several processes that make it at once, one does: a finished file is
    linked to the name, which fails where it is taken.

    Args:
        private: Folder of the key.
        begun: Whether the store holds anything that was made with a key. It is asked only where there is none.

    Raises:
        DataError: If the file is there but holds no key, or is gone.
    """
    path = private / "key"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        beside = temporary(path)
        beside.unlink(missing_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # Whoever began had a key by then, so one that is made between the two looks is seen by the second:
            # also on a network file system, which keeps what was not there, but not beyond a file of its own there.
            if begun() and not path.exists():
                raise lost_key(private.name)
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink()
        sync(private)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        text = "bring it back from a copy, or ingest into a new store"
        raise DataError(f"{private.name}/key must hold {KEY_BYTES} bytes in hexadecimal digits; {text}", "corrupt")
    return key


def lost_key(private: str) -> DataError:
    """What is told where a store has scans but no key: another one would rename all of its subjects."""
    return DataError(
        f"{private}/key must be there, as names of subjects are made with it; bring it back from a copy, or ingest "
        "into a new store",
        "no_key",
    )


def is_marked(place: Path) -> bool:
    """Whether a store says which key it was made with."""
    return open_folder(place).size("zarr.json") is not None and "key" in read_root(place)


def check_key(place: Path, key: bytes, logs: Collection[str] = ()) -> None:
    """Refuse a key that is not the one that a store, or what is to be gathered into it, was made with.

    Args:
        place: The store, or its URL.
        key: The key that is there.
        logs: Marks in the logs of workers. One of this key is enough: of several that made keys at once on a
            service that knows no conditions, one's stays, and what the others read is read again.

    Raises:
        DataError: With reason `other_key`.
    """
    mark = mark_of(key)
    if (logs and mark not in logs) or (is_marked(place) and read_root(place)["key"] != mark):
        raise DataError(
            f"{place.name}.private/key must be the key that the store was made with, not another one; bring it back "
            "from a copy, or ingest into a new store",
            "other_key",
        )


def stamp_key(place: Path, key: bytes) -> None:
    """Write into a store which key it was made with; nobody can tell the key by it."""
    root = read_root(place)
    if root.get("key") != mark_of(key):
        write_root(place, root | {"key": mark_of(key)})


def mark_of(key: bytes) -> str:
    """What tells one key from another and nothing else of it: 16 hexadecimal digits."""
    return keyed_hash(key, "\0the key itself")  # no file and no folder has such a name


def keyed_hash(key: bytes, name: str) -> str:
    """HMAC-SHA256 of a name, 16 hexadecimal digits; without the key it cannot be tried out."""
    told = name.encode(errors="surrogatepass")  # a folder's name, which may be a patient's, need not be UTF-8
    return hmac.new(key, told, hashlib.sha256).hexdigest()[:ID_DIGITS]


@dataclass(frozen=True, slots=True)
class Subjects:
    """Which patient a file belongs to, by a pattern or a table.

    Attributes:
        pattern: Regular expression with one group, searched in the file name without its ending.
        table: Subject by file name or by path below the source folder.
    """

    pattern: re.Pattern[str] | None = None
    table: dict[str, str] | None = None

    def find(self, stem: str, place: str) -> str | None:
        """The subject of a file, or None if the pattern or the table does not know it.

        Args:
            stem: File name without its ending.
            place: Path below the source folder, with slashes.
        """
        if self.table is not None:
            return self.table.get(place) or self.table.get(place.rpartition("/")[2])
        assert self.pattern is not None  # callers ask only when one of the two is set
        found = self.pattern.search(stem)
        return found.group(1) if found else None


def load_subjects(spec: str | None) -> Subjects | None:
    """Read `IngestConfig.subject`.

    Raises:
        ConfigError: If it is neither a pattern with one group nor a table with columns `file` and `subject`.
    """
    if spec is None:
        return None
    if spec.lower().endswith(".csv"):
        require(Path(spec).is_file(), "ingest.subject", "a CSV file that exists", Path(spec).name)
        rows = read_csv(Path(spec))
        ok = bool(rows) and all(row.get("file") and row.get("subject") for row in rows)
        require(ok, "ingest.subject", "a CSV file in UTF-8 with a file and a subject in every row", Path(spec).name)
        return Subjects(table={row["file"]: row["subject"] for row in rows})
    try:
        pattern = re.compile(spec)
    except re.error:
        pattern = None
    require(pattern is not None and pattern.groups == 1, "ingest.subject", "a regular expression with one group", spec)
    return Subjects(pattern=pattern)
