"""Folders on a disk or behind a URL (`s3://bucket/...`, anything fsspec knows), with the few operations we need.

A URL given as a `Path` keeps its meaning although `Path` folds its slashes.
Credentials and endpoints come from the environment, as the service's own tools
take them (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from voxscale.blobs import Blob, Mapped, Ranged
from voxscale.files import remove_tree, sync, write_bytes
from voxscale.remote import RemoteFolder

Access = Literal["map", "range"]
"""Map local files into memory, or read ranges of them: for network file systems, where a cut file ends a process."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


class Folder(Protocol):
    """A folder; names of files in it have slashes."""

    name: str

    def read(self, name: str) -> bytes:
        """All bytes of a file; raises `OSError`."""
        ...

    def blob(self, name: str, size: int | None = None) -> Blob:
        """A file to read parts of; one behind a URL is not asked for its size if it is given. Raises `OSError`."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees the old one or the whole new one."""
        ...

    def put(self, finished: Path, name: str) -> None:
        """Take over a finished local file, which is gone afterwards."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def names(self) -> Iterator[str]:
        """Names of all files, in order."""
        ...

    def folders(self) -> Iterator[str]:
        """Names of the folders in it, in no order."""
        ...

    def read_some(self, names: Sequence[str]) -> list[bytes | None]:
        """All bytes of small files, from a service at the same time; None for those that are not there."""
        ...

    def drop(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there."""
        ...


class LocalFolder:
    """A folder of this machine or of a file system that it has mounted."""

    def __init__(self, path: Path, access: Access = "map") -> None:
        self.path, self.name, self._access = path, path.name, access

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return (self.path / name).read_bytes()

    def blob(self, name: str, size: int | None = None) -> Blob:
        """A file, mapped or read by ranges; its size is looked up."""
        del size
        return (Mapped if self._access == "map" else Ranged)(self.path / name)

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """Write beside, flush, rename."""
        write_bytes(self.path / name, data)

    def put(self, finished: Path, name: str) -> None:
        """Flush and rename, which needs one file system."""
        sync(finished)
        finished.replace(self.path / name)
        sync((self.path / name).parent)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Names of all files, in order."""
        return iter(sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file()))

    def folders(self) -> Iterator[str]:
        """Names of the folders in it, in no order."""
        return (path.name for path in self.path.iterdir() if path.is_dir())

    def read_some(self, names: Sequence[str]) -> list[bytes | None]:
        """All bytes of small files; None for those that are not there."""
        return [file.read_bytes() if (file := self.path / name).is_file() else None for name in names]

    def drop(self, name: str) -> None:
        """Rename a folder, so that it is gone at once, and remove it with all that is in it."""
        if (self.path / name).exists():
            gone = (self.path / name).with_name(f".{name.rpartition('/')[2]}.old")
            (self.path / name).rename(gone)
            remove_tree(gone)


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for, or None if it is a local path."""
    found = _URL.fullmatch(str(path))
    return None if found is None else f"{found.group(1)}://{found.group(2)}"


def open_folder(path: Path | str, access: Access = "map") -> Folder:
    """A folder by its path or URL; nothing is looked at yet."""
    url = url_of(path)
    return LocalFolder(Path(path), access) if url is None else RemoteFolder(url)
