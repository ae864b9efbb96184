"""Raw scans to a store: `python -m data_prep ingest SRC [SRC ...] STORE [--part K/N]`.

One file beyond the usual length: the order of finding, claiming, reading and writing is read in one place.
"""

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from data_prep.ahead import ahead
from data_prep.audit import DUPLICATES, has_twins, write_duplicates
from data_prep.config import IngestConfig
from data_prep.counts import Counts, count
from data_prep.discover import Discovery, Source, discover
from data_prep.home import Home, open_home
from data_prep.ids import check_key, is_marked, keyed_hash, load_key, load_subjects, mark_of, stamp_key
from data_prep.jobs import Jobs, structure_values
from data_prep.ledger import Ledger
from data_prep.lookup import key_of
from data_prep.mirror import LostError, Mirrors
from data_prep.part import Part, parse_part
from data_prep.reading import LOST, Reading, Taken
from data_prep.results import PARTS, Results
from data_prep.steps import Outcome, verdict
from data_prep.structures import load_table
from data_prep.sweep import check_own, clear_left_over, sweep
from voxscale.config import config, parse, require
from voxscale.errors import DataError
from voxscale.folder import open_folder, url_of
from voxscale.index import INDEX
from voxscale.index_write import is_whole, label_values, publish_index, take_away, told_lines, write_parts
from voxscale.io.isolate import FULL
from voxscale.ledger import LEDGER
from voxscale.progress import Progress
from voxscale.store_root import create_store, read_root, with_classes

log = logging.getLogger("voxscale")

GATHER = "gather"
"""Name of the run that writes the ledger, where workers have their part's."""
AHEAD = 16
"""Inputs for each worker thread that may be finished before an earlier one is."""


def ingest(roots: Sequence[Path], store: Path, settings: IngestConfig, work: Path | None = None) -> Counts:
    """Read, check and write every scan below the given folders; goes on where earlier runs and workers ended.

    Args:
        roots: Source folders, or URLs of such.
        store: The store's folder, or its URL; secrets go into a folder beside it.
        settings: How to read and what to accept.
        work: Local folder for what is unfinished if the store has a URL, see `data_prep.home`.

    Raises:
        ConfigError: If a source folder is missing or a setting is wrong.
        DataError: If the store is in use or cannot be written, or classes conflict.
        StorageError: If a service that holds sources or the store does not answer.
    """
    with open_home(store, work) as home, Mirrors(roots, home.cache) as mirrors:
        found = _discover(roots, mirrors, home, settings)
        if not found.sources:
            return Counts(others=found.others, files=found.counts)
        with _told(), home.held():
            return _Ingest(home, settings, found, mirrors).gather()


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker did.

    Attributes:
        part: Which worker.
        inputs: Inputs that are its own.
        read: Volumes that it read.
        taken: Volumes that it or others had read before.
    """

    part: str
    inputs: int
    read: int
    taken: int


def ingest_part(
    roots: Sequence[Path], store: Path, settings: IngestConfig, part: Part, work: Path | None = None
) -> Share:
    """Read, check and write one worker's share of the scans; `ingest` then takes all shares together.

    Workers of one store need no lock and do not talk to each other: an input
    is the worker's that a hash of its path below its root names.

    Args:
        roots: Source folders, the same for all workers and for `ingest`.
        store: The store's folder, or its URL.
        settings: As for `ingest`.
        part: Which worker of how many this is.
        work: As for `ingest`.

    Raises:
        ConfigError: If a source folder is missing or a setting is wrong.
        DataError: If the store cannot be written, or classes conflict.
        StorageError: If a service that holds sources or the store does not answer.
    """
    with open_home(store, work) as home, Mirrors(roots, home.cache) as mirrors:
        found = _discover(roots, mirrors, home, settings)
        with _told():
            return _Ingest(home, settings, found, mirrors, part).work(part)


def _discover(roots: Sequence[Path], mirrors: Mirrors, home: Home, settings: IngestConfig) -> Discovery:
    place, given = _absolute(home.place), [_absolute(root) for root in roots]
    outside = not any(root in (place, *place.parents) or place in root.parents for root in given)
    require(outside, "store", "a folder outside the sources", place.name)
    if url_of(place) is None:
        check_own(place)
    load_subjects(settings.subject)  # a wrong setting is told before the walk
    found = discover(mirrors.roots, settings.seconds, settings.gigabytes, settings.labels)
    found.count("unusable_names", mirrors.unusable)
    found.sources = [replace(s, mirrored=True) if mirrors.holds(s.files[0]) else s for s in found.sources]
    return found


def _absolute(path: Path) -> Path:
    return path.resolve() if url_of(path) is None else path


@contextmanager
def _told() -> Generator[None]:
    """Turn what the store's disk refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DataError(f"store needs free disk space to go on ({error.strerror})", "disk_full") from None
        raise DataError(f"store must be writable, not fail with {error.strerror}", "not_writable") from None


class _Ingest:
    """One run on one store."""

    def __init__(
        self, home: Home, settings: IngestConfig, found: Discovery, mirrors: Mirrors, part: Part | None = None
    ) -> None:
        home.open()
        store, private = home.store, home.private
        key = load_key(private, partial(_begun, home))
        check_key(home.place, key)
        names = load_table(settings.structures)
        self.home, self.place, self.settings, self.found, self.key = home, home.place, settings, found, key
        known = with_classes(self.place, found.classes, found.image_classes)["classes"]
        self.values = structure_values(found, {int(value): name for value, name in known.items()}, key, names)
        name = GATHER if part is None else part.name
        self.results = Results(store, private, name, settings.seconds, home.note, mark_of(key))
        check_key(home.place, key, self.results.marks)
        self.ledger = Ledger(store, private, self._before_change if part is None else None)
        subjects = load_subjects(settings.subject)
        jobs = Jobs(store, self.results.scratch, settings, key, subjects, names, self.values)
        self.reading = Reading(jobs, self.ledger, self.results, mirrors, home)
        self.workers = settings.workers or len(os.sched_getaffinity(0))

    def _before_change(self) -> None:
        """What is made from the ledger goes before the ledger changes, so that what is there is valid."""
        take_away(self.place)
        open_folder(self.place).remove(DUPLICATES)

    def gather(self) -> Counts:
        """Settle every source that is not settled, in the order of discovery."""
        create_store(self.place, self.found.classes, self.found.image_classes)
        create_store(self.place, {value: name for name, value in self.values.items()})
        stamp_key(self.place, self.key)
        clear_left_over(self.home.store)
        sources = self.found.sources
        todo = [source for source in sources if not self.reading.settled(source)]
        self.ledger.find_ownerless(sources)
        with self._pool() as pool, self._progress(len(sources), len(sources) - len(todo)) as bar:
            named = ahead(pool, self.reading.name, todo, 2 * self.workers)
            for source, key, taken in ahead(pool, self._settle, self._claim(named, todo), AHEAD * self.workers):
                self.ledger.write(source, key, taken)
                bar.advance(1)
        self.ledger.rows.flush()
        self._finish()
        if self.results.taken:
            log.info("ingest: %d volumes read, %d were read before", self.results.read, self.results.taken)
        return count(self.found, self.ledger)

    def work(self, part: Part) -> Share:
        """Read the volumes of one worker's inputs; what became of them goes into its log."""
        mine = [source for source in self.found.sources if key_of(source.place) % part.of == part.number - 1]
        todo = [source for source in mine if not self.reading.settled(source)]
        with self._pool() as pool, self._progress(len(mine), len(mine) - len(todo), f"ingest {part.name}") as bar:
            named = ahead(pool, self.reading.name, todo, 2 * self.workers)
            for _ in ahead(pool, self._share, self._different(named, todo), 2 * self.workers):
                bar.advance(1)
        return Share(part.name, len(mine), self.results.read, self.results.taken)

    def _share(self, named: tuple[Source, str]) -> None:
        with suppress(LostError):  # the run that gathers meets it too, and writes it down
            self.reading.volumes(*named)

    @contextmanager
    def _pool(self) -> Generator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                yield pool
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self.reading.close()

    def _progress(self, total: int, done: int, stage: str = "ingest") -> Progress:
        return Progress(stage, total, unit="scans", done=done)

    def _finish(self) -> None:
        """Bring what is made from the ledger up to date."""
        folder = open_folder(self.place)
        marked = self.settings.duplicates == "off" or has_twins(self.place)
        whole = marked and folder.size(INDEX) is not None and is_whole(self.place)
        self.home.settle(self.ledger.changed)
        if self.ledger.changed or not whole or not self.results.empty:
            sweep(self.place, self.ledger.rows)
        if self.ledger.changed or not whole:
            lines = write_parts(self.place, self.home.store)
            self._name_classes(label_values(lines))
            publish_index(self.place, lines)
            if self.settings.duplicates == "mark":
                twins = write_duplicates(self.place)
                if twins:
                    log.info("ingest: %d pairs of scans show the same, see duplicates.json", len(twins))
        else:
            self._name_classes(label_values(told_lines(self.place)))  # the store's attributes may be new
        self.results.clear()
        self.home.clear()

    def _claim(self, named: Iterable[tuple[Source, str | None]], todo: Sequence[Source]) -> Iterator["_Claim"]:
        """Say in order of discovery which inputs need reading; of equal ones the first does."""
        seen = self._seen(todo)
        for source, key in named:
            if key is None:
                yield source, None, self._unread(source, source.problem or ("unreadable", "file cannot be read"))
                self.reading.drop(source)
                continue
            self.ledger.adopt(source, key)
            if source.problem is not None:
                status = "rejected" if source.kind == "label" else "quarantined"
                yield source, key, [(key, 0, Outcome(verdict(status, *source.problem)))]
            elif int(key, 16) in seen:
                reason = "another input has the same content"
                yield source, key, [(key, 0, Outcome(verdict("quarantined", "duplicate", reason)))]
            else:
                seen.add(int(key, 16))
                yield source, key, None
                continue
            self.reading.drop(source)

    def _unread(self, source: Source, why: tuple[str, str]) -> Taken:
        """Of an input whose bytes nobody could hash: its id is a keyed hash of its place."""
        hidden = keyed_hash(self.key, str(source.files[0]))
        return [(hidden, 0, Outcome(verdict("rejected", *why)))]

    def _seen(self, todo: Sequence[Source]) -> set[int]:
        """Ids, as numbers, of the rows that stay as they are."""
        rows = self.ledger.rows
        again = {self.ledger.place(source) for source in todo}
        again |= {place for places in self.ledger.ownerless.values() for place, _ in places}
        return {rows.number(p) for p in range(len(rows)) if p not in again and rows.verdict(p).rule != "duplicate"}

    def _different(
        self, named: Iterable[tuple[Source, str | None]], todo: Sequence[Source]
    ) -> Iterator[tuple[Source, str]]:
        """A worker's inputs that can be read and are not known to be equal to others."""
        seen = self._seen(todo)
        for source, key in named:
            if key is not None and int(key, 16) not in seen and source.problem is None:
                seen.add(int(key, 16))
                yield source, key
            else:
                self.reading.drop(source)

    def _settle(self, claim: "_Claim") -> tuple[Source, str | None, Taken]:
        """The volumes of an input, reading it if need be."""
        source, key, taken = claim
        if taken is None:
            assert key is not None  # else it was decided without reading
            try:
                taken = self.reading.volumes(source, key)
            except LostError:
                return source, None, self._unread(source, LOST)
        return source, key, taken

    def _name_classes(self, values: set[int]) -> None:
        """Give label values that no task declares their number as a name."""
        known = {int(value): name for value, name in read_root(self.place)["classes"].items()}
        create_store(self.place, {value: str(value) for value in values} | known)


def _begun(home: Home) -> bool:
    """Whether a store holds what is made with a key: a ledger, a log of a worker, the mark of one."""
    logs = (home.store / PARTS).glob("*/*.jsonl")
    return (home.store / LEDGER).exists() or any(logs) or is_marked(home.place)


_Claim = tuple[Source, str | None, Taken | None]
"""An input, its id, and what became of it if it need not be read."""


@config
class IngestArgs:
    """Take raw scans into a store.

    Attributes:
        paths: One or more source folders, then the store.
        part: K/N makes this worker K of N, which only reads its share; run once more without it to gather them.
        work: Local folder for what is unfinished where the store has a URL; None takes the system's temporary one.
        settings: How to read and what to accept.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    part: str | None = None
    work: Path | None = None
    settings: Annotated[IngestConfig, tyro.conf.arg(name="")] = field(default_factory=IngestConfig)

    def __post_init__(self) -> None:
        """Check that there is a source and a store; raises `ConfigError`."""
        require(
            len(self.paths) >= 2,
            "paths",
            "SRC [SRC ...] STORE",
            " ".join(open_folder(path).name for path in self.paths),
        )


def read_arguments(args: Sequence[str]) -> IngestArgs:
    """The command line; a wrong one exits with 2."""
    return parse(IngestArgs, None, args, "python -m data_prep ingest")


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep ingest`; returns the exit status.

    Standard output gets one JSON line of `Counts`, or of `Share` for a worker.
    """
    given = read_arguments(args)
    sources, store = given.paths[:-1], given.paths[-1]
    if given.part is not None:
        print(json.dumps(asdict(ingest_part(sources, store, given.settings, parse_part(given.part), given.work))))
        return 0
    counts = ingest(sources, store, given.settings, given.work)
    print(json.dumps(asdict(counts)))
    if counts.accepted:
        return 0
    log.error("no scan was accepted out of %d found", counts.found)
    return 2
