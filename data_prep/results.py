"""What was read of each volume, by content: logs that workers write for themselves and everyone may use.

A result is found by the id of a volume, which is a hash of its bytes, and
holds as long as the hashes of the steps that decided it are those of now, so
it does not matter which worker of how many read it, or whether that run was
ended. Every process writes a log of its own, so none needs a lock.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.lookup import Lookup, key_of
from data_prep.source import Source, state_of
from data_prep.steps import Outcome, holds, made_of
from voxscale.files import HOST, append_line, is_left_over

PARTS = "parts"
"""Folder of a store, and of its private folder, with the logs of workers."""
NO_RESULT = 2**64 - 1


class Results:
    """All logs below a store, and the one that this process writes.

    Held in memory: 32 bytes for each volume and 24 for each input of the logs.

    Attributes:
        scratch: Folder for unfinished scans, on the store's file system.
        read: Volumes that were read by this process.
        taken: Volumes that were taken from a log.
        marks: Of the keys with which the logs were made, as far as they tell.
    """

    def __init__(
        self,
        store: Path,
        private: Path,
        name: str,
        longest_s: float,
        written: Callable[[Path, bytes], None] | None = None,
        mark: str | None = None,
    ) -> None:
        """Read all logs.

        Args:
            store: The store's folder.
            private: The folder of its secrets.
            name: Of this worker.
            longest_s: Seconds that reading one volume takes at most.
            written: Told of every line that was written to a log.
            mark: Of the store's key, by which names in results are made.
        """
        self._store, self._private, self._longest_s = store, private, longest_s
        self.scratch = store / PARTS / name
        self.scratch.mkdir(parents=True, exist_ok=True)
        (private / PARTS / name).mkdir(parents=True, exist_ok=True)
        own = f"{HOST}-{os.getpid()}-{time.time_ns()}.jsonl"
        self._log, self._inputs = self.scratch / own, private / PARTS / name / own
        self._lock, self._written, self._mark = threading.Lock(), written, mark
        self.marks: set[str] = set()
        self.read = self.taken = 0
        self._clear_left_over(self.scratch)
        self._files = [*_logs(store), *_logs(private)]
        self._sizes: list[int] = []
        self._results, self._known = Lookup(3), Lookup(2)
        for number, path in enumerate(self._files):
            self._sizes.append(self._load(number, path))

    def _load(self, number: int, path: Path) -> int:
        """Take one log into memory; returns how far it was read. A last line that is being written is left alone."""
        end = 0
        with path.open("rb") as lines:
            for line in lines:
                row = _parse(line)
                if row is not None and "path" in row:
                    self._known.add(key_of(row["path"]), _state_key(row), int(row["id"], 16))
                elif row is not None:
                    self.marks.update([row["key"]] if row.get("key") else [])
                    place = (number << 44 | end) if "row" in row else NO_RESULT
                    wrote = int("row" not in row or row["row"]["thumbnail"] or row["row"]["status"] == "accepted")
                    self._results.add(int(row["id"], 16), place, int(row["made"]), wrote)
                end += len(line)
        return end

    @property
    def empty(self) -> bool:
        """Whether there was no log."""
        return not self._files

    def content_id(self, source: Source) -> str | None:
        """The id of an input that a worker hashed in the state in which its files are now."""
        state = _state_key(source.state or state_of(source))
        found = [key for known, key in self._known.find(key_of(source.files[0])) if known == state]
        return f"{found[-1]:016x}" if found else None

    def remember(self, source: Source, key: str) -> None:
        """Note the id of an input, so that its bytes need not be hashed again."""
        state = source.state or state_of(source)
        self._append(self._inputs, {"path": str(source.files[0]), **state, "id": key})

    def mixed(self, key: str, made: int) -> bool:
        """Whether a process began to write files of this volume under other settings: those there may be either's."""
        return any(wrote and other != made for _, other, wrote in self._results.find(int(key, 16)))

    def find(self, key: str, now: Mapping[str, str], limits: Mapping[str, float]) -> Outcome | None:
        """A result that still holds.

        Args:
            key: Id of the volume.
            now: Hashes of all steps.
            limits: Seconds and gigabytes that a reader may use.
        """
        for place, _, _ in reversed(self._results.find(int(key, 16))):
            row = None if place == NO_RESULT else self._line(place)
            if row is None or row["id"] != key:
                continue
            if holds(row["steps"], row["limit"], row["row"]["rule"], now, limits):
                found = Outcome(row["row"], row["parts"], row["steps"], row["limit"])
                return None if found.writes and self.mixed(key, made_of(now)) else found
        return None

    def _line(self, place: int) -> dict[str, Any] | None:
        try:
            with self._files[place >> 44].open("rb") as handle:
                handle.seek(place & (2**44 - 1))
                return _parse(handle.readline())
        except FileNotFoundError:
            return None

    def begin(self, key: str, now: Mapping[str, str]) -> None:
        """Note that a volume is about to be read: from now on files of it may be there."""
        self._append(self._log, {"id": key, "made": made_of(now), "key": self._mark})

    def end(self, key: str, now: Mapping[str, str], outcome: Outcome) -> None:
        """Note what became of a volume; it is not read again while that holds."""
        told = {"id": key, "made": made_of(now), "parts": outcome.parts, "limit": outcome.limit}
        self._append(self._log, told | {"steps": dict(outcome.steps or {}), "row": outcome.row})

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        with self._lock:
            path.parent.mkdir(parents=True, exist_ok=True)
            line = append_line(path, row)
            if self._written is not None:
                self._written(path, line)

    def clear(self) -> None:
        """Remove what the dead left, and the logs that were read and have not grown: the ledger holds all of it."""
        for path, size in zip(self._files, self._sizes, strict=True):
            if path.exists() and path.stat().st_size == size:
                path.unlink()
        for path in (self._log, self._inputs):
            path.unlink(missing_ok=True)
        for folder in (self._store / PARTS, self._private / PARTS):
            for worker in sorted(folder.iterdir()):
                self._clear_left_over(worker)
                if not any(worker.iterdir()):
                    worker.rmdir()
            if not any(folder.iterdir()):
                folder.rmdir()

    def _clear_left_over(self, folder: Path) -> None:
        """Remove unfinished scans of processes that are gone."""
        probe = folder / f".clock.{os.getpid()}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        for path in folder.iterdir():
            if is_left_over(path, 2 * self._longest_s, now):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _state_key(row: Mapping[str, Any]) -> int:
    return key_of(row.get("state"))


def _logs(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / PARTS).glob("*/*.jsonl"))


def _parse(line: bytes) -> dict[str, Any] | None:
    """One line; None if its writer was killed in the middle of it."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
