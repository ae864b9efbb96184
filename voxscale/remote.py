"""A folder behind a URL, by fsspec: requests that are asked at the same time, errors without addresses or secrets."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from voxscale.blobs import Blob
from voxscale.errors import ConfigError, StorageError, VoxScaleError
from voxscale.uploads import ONE_REQUEST, abort_left_over, is_s3, upload

log = logging.getLogger("voxscale")

SMALL = 1 << 20
"""Bytes below which objects are uploaded at the same time."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one version of an object from another.

    Attributes:
        size: Bytes.
        mtime_ns: The second of its last change, and below the second a hash of the service's tag of its content.
    """

    size: int
    mtime_ns: int


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

    def stamp(self, name: str) -> Stamp | None:
        """The version of an object, None if it is not there."""
        system, root = self.system()
        with _Told(self.name):
            try:
                return _stamp(system.info(f"{root}/{name}"))
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
        objects = (name for name in sorted(found) if found[name].get("type") != "directory")
        return ((str(name)[len(root) + 1 :], _stamp(found[name])) for name in objects)

    def heads(self, names: Sequence[str], length: int | None) -> list[bytes | None]:
        """The first bytes of objects (all: None), asked for at the same time; None for those that are not there."""
        system, root = self.system()
        with _Told(self.name):
            paths = [f"{root}/{name}" for name in names]
            found = system.cat_ranges(paths, [0] * len(names), [length] * len(names), on_error="return")
            return [None if isinstance(each, FileNotFoundError) else _part(each) for each in found]

    def read_some(self, names: Sequence[str]) -> list[bytes | None]:
        """All bytes of small objects, all asked for at the same time; None for those that are not there."""
        return self.heads(names, None) if names else []

    def fetch(self, name: str, target: Path) -> Stamp:
        """Copy an object into a local file; returns the version that the service has afterwards.

        From S3 it comes in one stream, which is taken up again where it broke; pieces are not, and are held in memory.

        Raises:
            OSError: If there is no such object or the disk is full.
        """
        system, root = self.system()
        with _Told(self.name):
            system.get_file(f"{root}/{name}", str(target), **({"max_concurrency": 1} if is_s3(system) else {}))
            return _stamp(system.info(f"{root}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Upload an object."""
        system, root = self.system()
        with _Told(self.name):
            system.pipe_file(f"{root}/{name}", data, **_whole(system))

    def create(self, name: str, data: bytes) -> bool:
        """Upload an object unless there is one of this name; returns whether it was this one that was made.

        Of several processes that do so at once only one does, if the service knows conditional writes, as S3 does.
        """
        system, root = self.system()
        try:
            system.pipe_file(f"{root}/{name}", data, mode="create", **_whole(system))
        except Exception as error:
            if isinstance(error, OSError) and self.size(name) is not None:
                return False
            with _Told(self.name):
                raise
        return True

    def put_some(self, files: Mapping[str, Path]) -> None:
        """Upload local files by the names of their objects, small ones at the same time; all of them stay."""
        system, root = self.system()
        small = [name for name, path in files.items() if path.stat().st_size < SMALL]
        with _Told(self.name):
            if small:
                system.put([str(files[name]) for name in small], [f"{root}/{name}" for name in small])
            for name in (name for name in files if name not in small):
                upload(system, files[name], f"{root}/{name}")

    def put(self, finished: Path, name: str) -> None:
        """Upload a local file, then remove it."""
        system, root = self.system()
        with _Told(self.name):
            upload(system, finished, f"{root}/{name}")
        finished.unlink()

    def clear_uploads(self) -> None:
        """Abort uploads below it that killed processes began, see `voxscale.uploads`; that it fails ends no run."""
        system, root = self.system()
        if not is_s3(system):
            return  # others drop them by themselves
        try:
            count = abort_left_over(system, root)
        except Exception as error:
            text = "uploads of killed runs to %s could not be looked for (%s); a rule of the bucket may abort them"
            log.warning(text, self.name, type(error).__name__)
            return
        if count:
            log.info("%d uploads to %s of killed runs were aborted", count, self.name)

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        system, root = self.system()
        with _Told(self.name):
            try:
                system.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    def drop(self, name: str) -> None:
        """Remove all objects below a name; the one that says that the others are whole goes first.

        Some services keep folders that were emptied, and list them as if something were in them: they go as well.
        """
        system, root = self.system()
        with _Told(self.name):
            try:
                found = [str(each) for each in system.find(f"{root}/{name}")]
            except FileNotFoundError:
                return
            for each in sorted(found, key=lambda path: (not path.endswith(f"/{name}/zarr.json"), path)):
                system.rm_file(each)
            emptied = {str(up) for each in found for up in PurePosixPath(each).parents if len(str(up)) > len(root)}
            for each in sorted(emptied, key=len, reverse=True):
                with suppress(OSError):  # where there are no such folders
                    system.rm_file(each)

    def folders(self) -> Iterator[str]:
        """Names of the folders in it; about 0.7 kB of memory for each while they are listed."""
        system, root = self.system()
        with _Told(self.name):
            try:
                found = system.ls(root, detail=True)
            except FileNotFoundError:
                found = []
        return (str(each["name"]).rpartition("/")[2] for each in found if each["type"] == "directory")

    def names(self) -> Iterator[str]:
        """Names of all objects, in order."""
        system, root = self.system()
        with _Told(self.name):
            try:
                found = system.find(root)
            except FileNotFoundError:
                found = []
        # Some services keep a folder that was emptied, and list it as if it were in itself.
        return iter(sorted(str(each)[len(root) + 1 :] for each in found if len(str(each)) > len(root)))


def _whole(system: Any) -> dict[str, int]:
    """Bytes in memory go to S3 in one request, which a kill leaves nothing of."""
    return {"chunksize": ONE_REQUEST} if is_s3(system) else {}


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
