"""Folders on a disk or behind a URL (`s3://bucket/...`, anything fsspec knows), with the few operations we need.

A URL given as a `Path` keeps its meaning although `Path` folds its slashes.
Credentials and endpoints come from the environment, as the service's own tools
take them (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from voxscale.blobs import Blob, Mapped, Ranged
from voxscale.errors import ConfigError, StorageError, VoxScaleError
from voxscale.files import sync, write_bytes

Access = Literal["map", "range"]
"""Map local files into memory, or read ranges of them: for network file systems, where a cut file ends a process."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one version of an object from another.

    Attributes:
        size: Bytes.
        mtime_ns: The second of its last change, and below the second a hash of the service's tag of its content.
    """

    size: int
    mtime_ns: int


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


class RemoteFolder:
    """A folder behind a URL. An upload appears whole or not at all, as object stores promise.

    Every operation but a missing file's raises `StorageError` if the service does not do what it is asked for;
    it has been asked several times by then.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = self.url.partition("?")[0].rpartition("/")[2].rpartition("@")[2]  # no query, no password
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "name": self.name, "_opened": None}  # connections stay in their process

    def system(self) -> tuple[Any, str]:
        """The file system of this process, whose threads and connections no other can use, and the folder in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            try:
                system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            except (ImportError, ValueError):
                scheme = self.url.partition(":")[0]
                raise ConfigError(
                    f"url must be of a kind that fsspec can open here, not {scheme}; `pip install 'voxscale[s3]'` "
                    "adds s3"
                ) from None
            self._opened = os.getpid(), system, str(root).rstrip("/")
        return self._opened[1], self._opened[2]

    def read(self, name: str) -> bytes:
        """All bytes of an object, by one request."""
        (data,) = self.ranges(name, [(0, None)])
        return data

    def ranges(self, name: str, wanted: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Parts of an object, all asked for at the same time; (-n, None) are the last n bytes; short beyond its end."""
        system, root = self.system()
        starts, stops = [start for start, _ in wanted], [stop for _, stop in wanted]
        with _Told(self.name):
            found = system.cat_ranges([f"{root}/{name}"] * len(wanted), starts, stops, on_error="return")
            return [_part(each) for each in found]

    def blob(self, name: str, size: int | None = None) -> Blob:
        """An object to read ranges of; nothing is asked for yet."""
        return _RemoteBlob(self, name, size)

    def size(self, name: str) -> int | None:
        """Bytes of an object, None if it is not there."""
        system, root = self.system()
        with _Told(self.name):
            try:
                return int(system.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def stamps(self) -> Iterator[tuple[str, Stamp]]:
        """Names and versions of all objects, in order; names as the service gives them, unchecked."""
        system, root = self.system()
        with _Told(self.name):
            try:
                found = system.find(root, detail=True)
            except FileNotFoundError:
                found = {}
        return ((str(name)[len(root) + 1 :], _stamp(found[name])) for name in sorted(found))

    def heads(self, names: Sequence[str], length: int) -> list[bytes | None]:
        """The first bytes of objects, all asked for at the same time; None for those that are not there."""
        system, root = self.system()
        with _Told(self.name):
            paths = [f"{root}/{name}" for name in names]
            found = system.cat_ranges(paths, [0] * len(names), [length] * len(names), on_error="return")
            return [None if isinstance(each, FileNotFoundError) else _part(each) for each in found]

    def fetch(self, name: str, target: Path) -> Stamp:
        """Copy an object into a local file; returns the version that the service has afterwards.

        Raises:
            OSError: If there is no such object or the disk is full.
        """
        system, root = self.system()
        with _Told(self.name):
            system.get_file(f"{root}/{name}", str(target))
            return _stamp(system.info(f"{root}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Upload an object."""
        system, root = self.system()
        with _Told(self.name):
            system.pipe_file(f"{root}/{name}", data)

    def put(self, finished: Path, name: str) -> None:
        """Upload a local file, then remove it."""
        system, root = self.system()
        with _Told(self.name):
            system.put_file(str(finished), f"{root}/{name}")
        finished.unlink()

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        system, root = self.system()
        with _Told(self.name):
            try:
                system.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    def names(self) -> Iterator[str]:
        """Names of all objects, in order."""
        system, root = self.system()
        with _Told(self.name):
            try:
                found = system.find(root)
            except FileNotFoundError:
                found = []
        return iter(sorted(str(each)[len(root) + 1 :] for each in found))


def _stamp(info: Mapping[str, Any]) -> Stamp:
    """The version of an object from what fsspec's file systems tell of it, each in words of its own."""
    tag = next((info[key] for key in ("ETag", "etag", "md5Hash", "content_md5") if info.get(key)), "")
    when = next((info[key] for key in ("LastModified", "last_modified", "updated", "mtime") if info.get(key)), None)
    if when is None:
        raise ConfigError("url must be of a service that tells when an object was changed last")
    when = datetime.fromisoformat(when) if isinstance(when, str) else when
    second = int(when.timestamp() if isinstance(when, datetime) else when)
    digest = hashlib.blake2b(str(tag).encode(), digest_size=8).digest()
    return Stamp(int(info["size"] or 0), second * 10**9 + int.from_bytes(digest, "big") % 10**9)


def _part(found: Any) -> bytes:
    """Bytes that came, none for a range beyond the end of an object, else what was raised."""
    if isinstance(found, OSError) and found.errno == errno.EINVAL:
        return b""  # the service's word for a range that it does not have
    if isinstance(found, BaseException):
        raise found
    return bytes(found)


class _RemoteBlob:
    """An object that is read by ranges."""

    gap = 1 << 20

    def __init__(self, folder: RemoteFolder, name: str, size: int | None) -> None:
        self._folder, self._name, self.size = folder, name, size

    def whole(self) -> None:
        """Not without reading it."""
        return

    def tail(self, length: int) -> bytes:
        """Its last bytes."""
        (data,) = self._folder.ranges(self._name, [(-length, None)])
        return data

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of it, at the same time."""
        return self._folder.ranges(self._name, wanted)


class _Told:
    """Turns what a service's library raises into `StorageError`s without address, paths or secrets."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such object") from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, os.strerror(error.errno)) from None  # this machine's disk, not the service
        if isinstance(error, Exception) and not isinstance(error, VoxScaleError):
            raise StorageError(
                f"storage behind the URL of {self._name} must answer, not fail with {type(error).__name__}; "
                "see that it runs and that your credentials allow this"
            ) from None


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for, or None if it is a local path."""
    found = _URL.fullmatch(str(path))
    return None if found is None else f"{found.group(1)}://{found.group(2)}"


def open_folder(path: Path | str, access: Access = "map") -> Folder:
    """A folder by its path or URL; nothing is looked at yet."""
    url = url_of(path)
    return LocalFolder(Path(path), access) if url is None else RemoteFolder(url)
