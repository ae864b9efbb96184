"""Folders on a disk or behind a URL (`s3://bucket/...`, anything fsspec knows), with the few operations we need.

A URL given as a `Path` keeps its meaning although `Path` folds its slashes.
Credentials and endpoints come from the environment, as the service's own tools
take them (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from voxscale.chunks import Blob, Mapped, Ranged
from voxscale.errors import ConfigError, DataError
from voxscale.files import sync, write_bytes

Access = Literal["map", "range"]
"""Map local files into memory, or read ranges of them: for network file systems, where a cut file ends a process."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


class Folder(Protocol):
    """A folder; names of files in it have slashes."""

    name: str

    def read(self, name: str) -> bytes:
        """All bytes of a file; raises `OSError`."""
        ...

    def blob(self, name: str) -> Blob:
        """A file to read parts of; raises `OSError`."""
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


class LocalFolder:
    """A folder of this machine or of a file system that it has mounted."""

    def __init__(self, path: Path, access: Access = "map") -> None:
        self.path, self.name, self._access = path, path.name, access

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return (self.path / name).read_bytes()

    def blob(self, name: str) -> Blob:
        """A file, mapped or read by ranges."""
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


class RemoteFolder:
    """A folder behind a URL. An upload appears whole or not at all, as object stores promise."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url.rstrip("/"), url.rstrip("/").rpartition("/")[2]

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "name": self.name}  # connections stay in their process

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError):
            scheme = self.url.partition(":")[0]
            raise ConfigError(
                f"url must be of a kind that fsspec can open here, not {scheme}; `pip install 'voxscale[s3]'` adds s3"
            ) from None
        return system, root

    def _at(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of an object."""
        with _Told(name):
            return bytes(self._opened[0].cat_file(self._at(name)))

    def blob(self, name: str) -> Blob:
        """An object to read ranges of."""
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(name)
        return _RemoteBlob(self._opened[0], self._at(name), size)

    def size(self, name: str) -> int | None:
        """Bytes of an object, None if it is not there."""
        with _Told(name):
            try:
                return int(self._opened[0].info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Upload an object."""
        with _Told(name):
            self._opened[0].pipe_file(self._at(name), data)

    def put(self, finished: Path, name: str) -> None:
        """Upload a local file, then remove it."""
        with _Told(name):
            self._opened[0].put_file(str(finished), self._at(name))
        finished.unlink()

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        with _Told(name):
            try:
                self._opened[0].rm_file(self._at(name))
            except FileNotFoundError:
                return

    def names(self) -> Iterator[str]:
        """Names of all objects, in order."""
        system, root = self._opened
        with _Told(self.name):
            try:
                found = system.find(root)
            except FileNotFoundError:
                found = []
        return iter(sorted(str(each)[len(root) + 1 :] for each in found))


class _RemoteBlob:
    """An object that is read by ranges."""

    def __init__(self, system: Any, path: str, size: int) -> None:
        self._system, self._path, self.size = system, path, size

    def whole(self) -> None:
        """Not without reading it."""
        return

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of it, at the same time."""
        starts, stops = [start for start, _ in wanted], [stop for _, stop in wanted]
        with _Told("object"):
            return [bytes(part) for part in self._system.cat_ranges([self._path] * len(wanted), starts, stops)]


class _Told:
    """Turns what a service's library raises into `OSError`s without address or secrets."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, FileNotFoundError | KeyboardInterrupt | ConfigError | DataError):
            return
        if isinstance(error, Exception):
            raise OSError(f"storage behind the URL must answer for {self._name}, not {type(error).__name__}") from None


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for, or None if it is a local path."""
    found = _URL.fullmatch(str(path))
    return None if found is None else f"{found.group(1)}://{found.group(2)}"


def open_folder(path: Path | str, access: Access = "map") -> Folder:
    """A folder by its path or URL; nothing is looked at yet."""
    url = url_of(path)
    return LocalFolder(Path(path), access) if url is None else RemoteFolder(url)
