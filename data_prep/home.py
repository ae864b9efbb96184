"""Where a run writes its store: the folder itself, or a local folder from which what is finished goes to a URL.

Object stores have no locks, no renaming and no appending. So a run on a URL
works in a local folder as on any store, and uploads in an order that a kill
may cut anywhere: that a volume is begun, its objects with the one that names
them whole last, what became of it. Logs go up in segments that are replaced
whole; ledger and index once, by the run that gathers. Nothing that matters is
local only: a run on another machine goes on from the objects alone.

Above 300 lines because both homes stand side by side: each method of one says
what it is in the other.
"""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data_prep.ids import is_marked, load_key, lost_key
from data_prep.results import PARTS
from data_prep.sweep import THUMBNAILS
from voxscale.config import require
from voxscale.errors import ConfigError, DataError
from voxscale.files import is_left_over, locked, temporary
from voxscale.folder import url_of
from voxscale.ledger import LEDGER
from voxscale.remote import RemoteFolder, Stamp

SOURCES, KEY, WHOLE = "sources.jsonl", "key", "zarr.json"
SEGMENT = 64
"""Lines of a log that are one object."""
AT_ONCE = 64
"""Small objects that are asked for at the same time."""


class Home(Protocol):
    """Where a run works.

    Attributes:
        place: The store as it was given, a folder or a URL.
        store: Folder that readers write to and that holds ledger and logs.
        private: Folder of secrets beside it.
        cache: Private folder for what other runs may use but nobody needs.
    """

    place: Path
    store: Path
    private: Path
    cache: Path

    def open(self) -> None:
        """Have everything there that earlier runs left."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Hold the store against other runs that gather."""
        ...

    def has(self, key: str) -> bool:
        """Whether a scan is in the store."""
        ...

    def shows(self, key: str) -> bool:
        """Whether the picture of a scan is in the store."""
        ...

    def take(self, key: str) -> None:
        """The files of a volume are finished in `store`."""
        ...

    def note(self, log: Path, line: bytes) -> None:
        """A line was written to a log in `store` or `private`."""
        ...

    def settle(self, changed: bool) -> None:
        """The ledger is finished, and was changed or not."""
        ...

    def clear(self) -> None:
        """The logs that `open` found are needed no more."""
        ...


class LocalHome:
    """A folder: what is written there is there."""

    def __init__(self, store: Path) -> None:
        self.place = self.store = store.resolve()
        self.private = self.cache = self.store.with_name(f"{self.store.name}.private")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Nothing is left to do."""

    def open(self) -> None:
        """Everything is there."""

    @contextmanager
    def held(self) -> Generator[None]:
        """Lock the folder."""
        with locked(self.store):
            yield

    def has(self, key: str) -> bool:
        """Whether a scan's folder is there."""
        return (self.store / key / WHOLE).exists()

    def shows(self, key: str) -> bool:
        """Whether its file is there."""
        return (self.store / THUMBNAILS / f"{key}.png").exists()

    def take(self, key: str) -> None:
        """They are where they belong."""

    def note(self, log: Path, line: bytes) -> None:
        """It is where it belongs."""

    def settle(self, changed: bool) -> None:
        """It is where it belongs."""

    def clear(self) -> None:
        """`Results` removes them."""


class RemoteHome:
    """A URL, and a local folder of this process that is gone with it.

    Args:
        place: URL of the store; secrets are behind the same URL with `.private` at its end.
        work: Local folder for what is unfinished; None takes one below the system's temporary folder.

    Raises:
        ConfigError: If the folder belongs to someone else.
    """

    def __init__(self, place: Path, work: Path | None) -> None:
        url = (url_of(place) or "").rstrip("/")
        good = "?" not in url and "/" in url.partition("://")[2]
        require(good, "store", "a folder of a bucket, by a URL without a query", "another one")
        self.place, self._url = place, url
        self.cache = work_folder(place, work)
        self._run = temporary(self.cache / "run")
        name = url.rpartition("/")[2]
        self.store, self.private = self._run / name, self._run / f"{name}.private"
        self._folder, self._secret = RemoteFolder(url), RemoteFolder(f"{url}.private")
        self._there = self._shown = np.zeros(0, dtype=np.uint64)
        self._new, self._new_shown, self._lock = set[int](), set[int](), threading.Lock()
        self._logs: dict[tuple[str, str], Stamp] = {}
        self._segments: dict[Path, _Segment] = {}
        self._before: dict[str, Stamp | None] = {}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Remove the local folder."""
        shutil.rmtree(self._run, ignore_errors=True)

    def open(self) -> None:
        """Fetch key, ledger, list of sources and logs, and list the scans."""
        for left in self.cache.iterdir():
            if is_left_over(left, float("inf"), 0.0):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        for folder in (self._folder, self._secret):
            folder.clear_uploads()
        self.store.mkdir(parents=True)
        self.private.mkdir(mode=0o700)
        self._fetch_key()
        for folder, name, here in ((self._folder, LEDGER, self.store), (self._secret, SOURCES, self.private)):
            self._before[name] = _fetch(folder, name, here / name)
        for folder, here in ((self._folder, self.store), (self._secret, self.private)):
            self._fetch_logs(folder, here)
        self._there = _ids(self._folder.folders())
        pictures = RemoteFolder(f"{self._url}/{THUMBNAILS}").names()
        self._shown = _ids(name.removesuffix(".png") for name in pictures if name.endswith(".png"))

    def _fetch_key(self) -> None:
        """The key of the store; of several workers that make it at once one does, and all take that one's."""
        (known,) = self._secret.read_some([KEY])
        if known is None and self._begun():
            (known,) = self._secret.read_some([KEY])  # another run may have begun since
            if known is None:
                raise lost_key(self.private.name)
        if known is None:
            load_key(self.private)
            self._secret.create(KEY, (self.private / KEY).read_bytes())
            known = self._secret.read(KEY)
        (self.private / KEY).write_bytes(known)
        (self.private / KEY).chmod(0o600)

    def _begun(self) -> bool:
        """Whether the store holds what is made with a key."""
        logs = RemoteFolder(f"{self._url}/{PARTS}").stamps()
        made = self._folder.size(LEDGER) is not None or is_marked(self.place)
        return made or any(_is_log(name) for name, _ in logs)

    def _fetch_logs(self, folder: RemoteFolder, here: Path) -> None:
        listed = dict(RemoteFolder(f"{folder.url}/{PARTS}").stamps())
        names = [name for name in listed if _is_log(name)]
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            for name, data in zip(some, folder.read_some([f"{PARTS}/{name}" for name in some]), strict=True):
                if data is not None and len(data) == listed[name].size:
                    self._logs[folder.url, f"{PARTS}/{name}"] = listed[name]
                    (here / PARTS / name).parent.mkdir(parents=True, exist_ok=True)
                    (here / PARTS / name).write_bytes(data)

    @contextmanager
    def held(self) -> Generator[None]:
        """Nothing: `settle` notices another run."""
        yield

    def has(self, key: str) -> bool:
        """Whether objects of a scan are there; that they are all there stands in a log or the ledger."""
        return int(key, 16) in self._new or _among(self._there, int(key, 16))

    def shows(self, key: str) -> bool:
        """Whether its object is there."""
        return int(key, 16) in self._new_shown or _among(self._shown, int(key, 16))

    def take(self, key: str) -> None:
        """Upload a scan and its picture, the object that says that it is whole last; then the local files go."""
        folder, picture = self.store / key, self.store / THUMBNAILS / f"{key}.png"
        if picture.is_file():
            self._folder.put(picture, f"{THUMBNAILS}/{key}.png")
            with self._lock:
                self._new_shown.add(int(key, 16))
        if not folder.is_dir():
            return
        remote = RemoteFolder(f"{self._url}/{key}")
        files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        last = files.pop(WHOLE)
        others = [name for name in remote.names() if name not in files and name != WHOLE]
        remote.put_some(files)
        for name in others:  # of other settings
            remote.remove(name)
        remote.put_some({WHOLE: last})
        shutil.rmtree(folder)
        with self._lock:
            self._new.add(int(key, 16))

    def note(self, log: Path, line: bytes) -> None:
        """Replace the last segment of a log; what inputs hash to goes up with the next result."""
        with self._lock:
            segment = self._segments.setdefault(log, _Segment())
            segment.add(line)
            if log.is_relative_to(self.store):
                self._upload_logs()

    def _upload_logs(self) -> None:
        # What is private first: a result without it costs a second look, nothing else.
        for log, segment in sorted(self._segments.items(), key=lambda pair: not pair[0].is_relative_to(self.private)):
            folder, name = self._object(log)
            for number, data in segment.changed():
                folder.write(f"{name}-{number:06d}.jsonl", data)

    def _object(self, log: Path) -> tuple[RemoteFolder, str]:
        """Folder behind a URL, and name in it without number and ending, of a log."""
        secret = log.is_relative_to(self.private)
        name = log.relative_to(self.private if secret else self.store).with_suffix("").as_posix()
        return self._secret if secret else self._folder, name

    def settle(self, changed: bool) -> None:
        """Upload list of sources and ledger, if they changed; a row is only good if both tell of it.

        Raises:
            DataError: If another run has written them since this one began.
        """
        for folder, name, here in ((self._secret, SOURCES, self.private), (self._folder, LEDGER, self.store)):
            before, file = self._before[name], here / name
            if folder.stamp(name) != before:
                text = "must be gathered by one run at a time; another one wrote its ledger meanwhile: start again"
                raise DataError(f"{self._folder.name} {text}", "busy")
            if file.is_file() and (changed or before is None or file.stat().st_size != before.size):
                folder.put_some({name: file})

    def clear(self) -> None:
        """Remove the segments that were fetched and not replaced since, and those of this run."""
        for folder in (self._folder, self._secret):
            now = dict(RemoteFolder(f"{folder.url}/{PARTS}").stamps())
            for (url, name), stamp in self._logs.items():
                if url == folder.url and now.get(name.removeprefix(f"{PARTS}/")) == stamp:
                    folder.remove(name)
        for log, segment in self._segments.items():
            folder, name = self._object(log)
            for number in range(segment.number + 1):
                folder.remove(f"{name}-{number:06d}.jsonl")


class _Segment:
    """The lines of one log that are not in a finished object."""

    def __init__(self) -> None:
        self.number, self._lines, self._dirty = 0, list[bytes](), False

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        self._dirty = True

    def changed(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each object that must be written."""
        while self._dirty:
            yield self.number, b"".join(self._lines[:SEGMENT])
            if len(self._lines) < SEGMENT:
                self._dirty = False
            else:
                self.number, self._lines = self.number + 1, self._lines[SEGMENT:]
                self._dirty = bool(self._lines)


def open_home(place: Path, work: Path | None = None) -> LocalHome | RemoteHome:
    """Where a run works.

    Args:
        place: The store's folder, or its URL.
        work: See `RemoteHome`.
    """
    return LocalHome(place) if url_of(place) is None else RemoteHome(place, work)


def work_folder(place: Path, work: Path | None = None) -> Path:
    """Local private folder of a store behind a URL, which all runs on this machine share; made on first use.

    Raises:
        ConfigError: If it belongs to someone else.
    """
    base = work or Path(tempfile.gettempdir()) / f"voxscale-{os.getuid()}"
    folder = base / hashlib.sha256((url_of(place) or "").rstrip("/").encode()).hexdigest()[:16]
    for each in (base, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    if work is None and base.stat().st_uid != os.getuid():
        raise ConfigError("work must be a folder of your own; the temporary one belongs to someone else")
    return folder


def _ids(names: Iterable[str]) -> NDArray[np.uint64]:
    """Those of some names that are ids, as sorted numbers of 8 bytes."""
    ids = (name for name in names if len(name) == 16 and not set(name) - set("0123456789abcdef"))
    return np.sort(np.fromiter((int(name, 16) for name in ids), dtype=np.uint64))


def _among(numbers: NDArray[np.uint64], number: int) -> bool:
    place = int(np.searchsorted(numbers, np.uint64(number)))
    return place < len(numbers) and int(numbers[place]) == number


def _is_log(name: str) -> bool:
    """Whether an object below `parts` has a name that a log can have: names of a service are never trusted."""
    parts = name.split("/")
    return len(parts) == 2 and name.endswith(".jsonl") and all(part.strip(".") for part in parts) and "\0" not in name


def _fetch(folder: RemoteFolder, name: str, target: Path) -> Stamp | None:
    try:
        return folder.fetch(name, target)
    except FileNotFoundError:
        return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
