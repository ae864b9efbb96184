"""Sources behind URLs: a private mirror of their listing to find scans in, and whole copies of those being read.

`STORE.private/mirror/<hash of the URL>/objects/` is a tree like the objects':
each file has its object's size and a time that names the object's version,
but of its bytes only the head that discovery looks at; the rest is a hole. It
is a cache: deleting it costs the requests to make it again. Files are only
ever replaced by renaming, so workers may share it.

Before a source is hashed or read, its files are copied whole into a folder of
this process, and removed after. Held on disk at most: the heads, and
3 x `ingest.workers` sources (2 that are hashed ahead and 1 that is read for
each worker).
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from data_prep.heads import HEADS, is_dicom_cut, usable
from voxscale.config import require
from voxscale.errors import ConfigError, DataError
from voxscale.files import is_left_over, temporary
from voxscale.folder import url_of
from voxscale.io import suffix_of
from voxscale.io.isolate import FULL
from voxscale.remote import RemoteFolder, Stamp

log = logging.getLogger("voxscale")

FOLDER = "mirror"
WHOLE = (".json", ".csv", ".tsv", ".txt")
"""Endings of files that discovery may read to their end."""
WHOLE_BYTES = 1 << 24
"""Size up to which it may."""
BATCH_BYTES = 1 << 25
"""Heads that are in memory at once."""
ABANDONED_S = 86400.0
"""Seconds after which copies of a process of another machine are given up."""


class LostError(OSError):
    """An object is not there any more as it was listed."""


@dataclass(frozen=True, slots=True)
class _Mirror:
    """One URL."""

    folder: RemoteFolder
    home: Path

    @property
    def objects(self) -> Path:
        """The tree that discovery walks."""
        return self.home / "objects"

    def refresh(self) -> int:
        """Make the tree that of the objects there are now; returns how many have names that cannot be file names."""
        self.objects.mkdir(parents=True, exist_ok=True)
        listed = dict(self.folder.stamps())
        listed = {name: stamp for name, stamp in listed.items() if not (name.endswith("/") and stamp.size == 0)}
        if not listed:
            raise ConfigError("source behind a URL must hold at least one object; see that its address is right")
        names = usable(listed)
        self._prune(names)
        small = [name for name in names if suffix_of(Path(name)) in WHOLE and listed[name].size <= WHOLE_BYTES]
        self._take(small, listed, WHOLE_BYTES)
        known = set(small)
        cut = [name for name in names if name not in known]
        for length in HEADS:
            cut = self._take(cut, listed, length)
        for name in cut:
            self._whole(name, listed[name])
        return len(listed) - len(names)

    def _prune(self, names: Sequence[str]) -> None:
        """Remove files, and folders left empty, of objects that are gone."""
        keep = set(names)
        for folder, _, files in os.walk(self.objects, topdown=False):
            below = Path(folder)
            for file in files:
                if (below / file).relative_to(self.objects).as_posix() not in keep:
                    (below / file).unlink(missing_ok=True)
            if below != self.objects and not any(below.iterdir()):
                below.rmdir()

    def _take(self, names: Sequence[str], listed: Mapping[str, Stamp], length: int) -> list[str]:
        """Fetch heads that are not there in this version; returns those that are too short for discovery."""
        most, short = max(1, BATCH_BYTES // length), list[str]()
        first = hash(f"{os.getpid()}") % max(1, len(names))  # workers that begin together share the fetching
        names = [*names[first:], *names[:first]]
        for begin in range(0, len(names), most):
            # The list is long: another worker may have been here by now.
            batch = [name for name in names[begin : begin + most] if not self._current(name, listed[name])]
            for name, head in zip(batch, self.folder.heads(batch, length) if batch else (), strict=True):
                if self._put(name, listed[name], head, length):
                    short.append(name)
        return short

    def _current(self, name: str, stamp: Stamp) -> bool:
        try:
            state = (self.objects / name).stat()
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (stamp.size, stamp.mtime_ns)

    def _put(self, name: str, stamp: Stamp, head: bytes | None, length: int) -> bool:
        """Write one file of the tree; returns whether discovery needs more of the object.

        An object that went away or was cut gets a file without a version, so
        that reading it, which says what is wrong, and the next run ask again.
        """
        path, beside = self.objects / name, temporary(self.home / "object")
        head = head or b""
        complete = len(head) == min(length, stamp.size)
        with beside.open("wb") as handle:
            handle.write(head)
            handle.truncate(stamp.size)
        short = complete and stamp.size > length and is_dicom_cut(path, head, stamp.size)
        mtime_ns = stamp.mtime_ns if complete and not short else 0
        os.utime(beside, ns=(mtime_ns, mtime_ns))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.replace(path)
        return short

    def _whole(self, name: str, stamp: Stamp) -> None:
        """Put all of an object into the tree: its header goes on for longer than heads do."""
        beside = temporary(self.home / "object")
        try:
            now = self.folder.fetch(name, beside)
        except FileNotFoundError:
            return  # its file stays without a version
        same = now == stamp and beside.stat().st_size == stamp.size
        os.utime(beside, ns=(stamp.mtime_ns, stamp.mtime_ns) if same else (0, 0))
        beside.replace(self.objects / name)


class Mirrors:
    """The sources of a run: local folders as they are, and mirrors of those behind URLs.

    Attributes:
        roots: A local folder for each source.
        unusable: Objects whose names cannot be names of files below a folder.
    """

    def __init__(self, roots: Sequence[Path], private: Path) -> None:
        """Bring the mirrors up to date.

        Args:
            roots: Folders and URLs.
            private: The folder that they are in, open to its owner alone; made if there is a URL.

        Raises:
            ConfigError: If a URL holds nothing, lies in another, or is of an unknown kind.
            DataError: If the disk is full.
            StorageError: If a service does not answer.
        """
        urls = [url_of(root) for root in roots]
        _check_apart([url.rstrip("/") for url in urls if url is not None])
        self.roots, self.unusable = list[Path](), 0
        self._mirrors: dict[Path, _Mirror] = {}
        folder = private / FOLDER
        self._copies = temporary(folder / "copies")
        for root, url in zip(roots, urls, strict=True):
            if url is None:
                self.roots.append(root)
                continue
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            home = folder / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
            mirror = _Mirror(RemoteFolder(url), home)
            try:
                self.unusable += mirror.refresh()
            except OSError as error:
                raise _disk(error) from None
            self._mirrors[home] = mirror
            self.roots.append(mirror.objects)
        if self._mirrors:
            self._clear_left_over(folder)
        if self.unusable:
            log.warning("ingest: %d objects have names that no file can have; they are not taken", self.unusable)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Remove the copies of this process."""
        shutil.rmtree(self._copies, ignore_errors=True)

    def here(self, *groups: Sequence[Path]) -> list[tuple[Path, ...]]:
        """Files of one source to be read, copied whole if they lie behind a URL.

        Args:
            groups: Its files, and those of its label.

        Raises:
            LostError: If an object is gone, cut, or not in the version that was listed.
            DataError: If the disk is full.
            StorageError: If the service does not answer.
        """
        return [tuple(self._here(path, groups[0][0]) for path in paths) for paths in groups]

    def _here(self, path: Path, first: Path) -> Path:
        mirror = self._of(path)
        if mirror is None:
            return path
        name = path.relative_to(mirror.objects).as_posix()
        copy = self._folder(first) / name
        if copy.exists():
            return copy
        try:
            state = path.stat()
            copy.parent.mkdir(parents=True, exist_ok=True)
            beside = temporary(self._folder(first) / "object")
            now = mirror.folder.fetch(name, beside)
            if not now.size == beside.stat().st_size == state.st_size or now.mtime_ns != state.st_mtime_ns:
                raise LostError
            beside.rename(copy)
        except FileNotFoundError:
            raise LostError from None
        except LostError:
            raise
        except OSError as error:
            raise _disk(error) from None
        return copy

    def holds(self, path: Path) -> bool:
        """Whether a file is a mirror's."""
        return self._of(path) is not None

    def drop(self, first: Path) -> None:
        """Remove the copies of a source, given the file that it opens first."""
        if self._of(first) is not None:
            shutil.rmtree(self._folder(first), ignore_errors=True)

    def _folder(self, first: Path) -> Path:
        return self._copies / hashlib.sha256(os.fsencode(first)).hexdigest()[:32]

    def _of(self, path: Path) -> _Mirror | None:
        return next((self._mirrors[home] for home in self._mirrors if home in path.parents), None)

    def _clear_left_over(self, folder: Path) -> None:
        probe = temporary(folder / "clock")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        for path in [*folder.iterdir(), *(each for home in self._mirrors for each in home.iterdir())]:
            if is_left_over(path, ABANDONED_S, now):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _check_apart(urls: Sequence[str]) -> None:
    apart = not any(
        one == other or one.startswith(f"{other}/")
        for place, one in enumerate(urls)
        for other in (*urls[:place], *urls[place + 1 :])
    )
    require(apart, "sources", "folders of which none holds another", f"{len(urls)} URLs that overlap")


def _disk(error: OSError) -> DataError:
    """One line for what the disk of the private folder refuses; no path, which may name a patient."""
    if error.errno in FULL:
        return DataError(f"private folder needs free disk space for copies of objects ({error.strerror})", "disk_full")
    return DataError(f"private folder must be writable, not fail with {error.strerror}", "not_writable")
