"""Raw scans to a store: `python -m data_prep ingest SRC [SRC ...] STORE`."""

import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from data_prep.audit import write_duplicates
from data_prep.config import IngestConfig
from data_prep.counts import Counts, count
from data_prep.discover import Discovery, Source, discover
from data_prep.ids import Subjects, content_id, keyed_hash, load_key, load_subjects, part_id
from data_prep.ledger import Ledger
from data_prep.privacy.dates import day_number
from data_prep.scan import Identity, Job, take_in
from data_prep.structures import assign_values, class_name, load_table
from voxscale.config import config, config_hash, parse, require, to_dict
from voxscale.errors import DataError
from voxscale.files import locked
from voxscale.index import INDEX, write_index
from voxscale.io.dicom import count_volumes
from voxscale.io.isolate import FULL, run_isolated
from voxscale.progress import Progress
from voxscale.store import accepted
from voxscale.store_root import create_store, read_root

log = logging.getLogger("voxscale")

UNDECLARED = 128
"""Lowest class value of named structures where other labels of the same run number their classes without names."""

T = TypeVar("T")
U = TypeVar("U")
Row = dict[str, Any]


def ingest(roots: Sequence[Path], store: Path, settings: IngestConfig) -> Counts:
    """Read, check and write every scan below the given folders; goes on where an earlier run ended.

    Args:
        roots: Source folders.
        store: The store's folder; secrets go into a folder beside it.
        settings: How to read and what to accept.

    Raises:
        ConfigError: If a source folder is missing or a setting is wrong.
        DataError: If the store is in use or cannot be written, or classes conflict.
    """
    home, subjects = store.resolve(), load_subjects(settings.subject)
    outside = not any(root.resolve() in (home, *home.parents) or home in root.resolve().parents for root in roots)
    require(outside, "store", "a folder outside the sources", store.name)
    found = discover(roots, settings.seconds, settings.gigabytes, settings.labels)
    if not found.sources:
        return Counts(others=found.others, files=found.counts)
    try:
        with locked(home):
            return _Ingest(home, settings, subjects).run(found)
    except OSError as error:
        if error.errno in FULL:
            raise DataError(f"store needs free disk space to go on ({error.strerror})", "disk_full") from None
        raise DataError(f"store must be writable, not fail with {error.strerror}", "not_writable") from None


class _Ingest:
    """One run on one store."""

    def __init__(self, store: Path, settings: IngestConfig, subjects: Subjects | None) -> None:
        private = store.with_name(f"{store.name}.private")
        self.key = load_key(private)
        kept = ("dataset", "modality", "labels", "subject", "volumes", "read", "rules", "privacy")
        decide = {name: value for name, value in to_dict(settings).items() if name in kept}
        self.names = load_table(settings.structures)
        decide |= {"table": None if subjects is None else subjects.table, "names": self.names}
        self.store, self.settings, self.subjects = store, settings, subjects
        self.values: dict[str, int] = {}
        self.ledger = Ledger(store, private, config_hash(decide))

    def run(self, found: Discovery) -> Counts:
        """Settle every source that is not settled, in the order of discovery."""
        create_store(self.store, found.classes, found.image_classes)
        self._name_structures(found)
        for leftover in [*self.store.glob(".*.tmp"), *self.store.glob(".*.old")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        todo = [source for source in found.sources if not self.ledger.settled(source)]
        if todo:
            (self.store / INDEX).unlink(missing_ok=True)
        workers = self.settings.workers or len(os.sched_getaffinity(0))
        done = len(found.sources) - len(todo)
        with (
            ThreadPoolExecutor(workers) as pool,
            Progress("ingest", len(found.sources), unit="scans", done=done) as bar,
        ):
            try:
                named = _ahead(pool, self._name, todo, 2 * workers)
                for source, rows in _ahead(pool, self._settle, self._claim(named, todo), 2 * workers):
                    self.ledger.write(source, rows)
                    bar.advance(1)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        self.ledger.flush()
        self._name_classes()
        if todo or not (self.store / INDEX).exists():
            write_index(self.store, accepted(self.store))
            if self.settings.duplicates == "mark":
                twins = write_duplicates(self.store)
                if twins:
                    log.info("ingest: %d pairs of scans show the same, see duplicates.json", len(twins))
        return count(found, self.ledger)

    def _name(self, source: Source) -> tuple[Source, str | None]:
        """An input and its id; None if its bytes cannot be read."""
        try:
            return source, content_id(source.files, source.label)
        except OSError:
            return source, None

    def _claim(self, named: Iterable[tuple[Source, str | None]], todo: Sequence[Source]) -> Iterator["_Claim"]:
        """Say in order of discovery which inputs need reading; of equal ones the first does."""
        again = {self.ledger.place(source) for source in todo} | set(self.ledger.ownerless)
        rows = enumerate(self.ledger.rows)
        seen = {row["id"] for place, row in rows if place not in again and row["rule"] != "duplicate"}
        for source, key in named:
            if key is None:
                hidden = keyed_hash(self.key, str(source.files[0]))
                yield source, hidden, _row(hidden, source, "rejected", "unreadable", "file cannot be read")
                continue
            self.ledger.adopt(source, key)
            if source.problem is not None:
                status = "rejected" if source.kind == "label" else "quarantined"
                yield source, key, _row(key, source, status, *source.problem)
            elif key in seen:
                reason = "another input has the same content"
                yield source, key, _row(key, source, "quarantined", "duplicate", reason)
            else:
                seen.add(key)
                yield source, key, None

    def _settle(self, claim: "_Claim") -> tuple[Source, list[Row]]:
        """The ledger rows of an input, one per volume taken, reading it if need be."""
        source, key, row = claim
        if row is not None:
            return source, [row]
        subject = self._subject(source, key)
        if subject is None:
            reason = "the subject setting does not know this file"
            return source, [_row(key, source, "quarantined", "no_subject", reason)]
        job = self._job(source, key, subject)
        first, parts = self._take_in(source, job)
        taken = self._spread(parts, bool(source.label))
        if parts > 1:
            first["notes"] = [f"{len(taken)} of {parts} volumes are taken", *first["notes"]]
        more = [replace(job, key=part_id(key, part), part=part) for part in taken[1:]]
        return source, [first, *(self._take_in(source, each)[0] for each in more)]

    def _spread(self, parts: int, labelled: bool) -> list[int]:
        """Which volumes of an input are taken: the first, and others evenly spread."""
        most = 1 if labelled else max(1, min(self.settings.volumes, parts))
        return [number * parts // most for number in range(most)]

    def _take_in(self, source: Source, job: Job) -> tuple[Row, int]:
        """The ledger row of one volume, and how many its input holds."""
        try:
            told = run_isolated(take_in, (job,), self.settings.seconds, self.settings.gigabytes)
        except DataError as error:
            parts = self._parts(job) if job.part == 0 and job.several else 1
            return _row(job.key, source, "rejected", error.reason, str(error), part=job.part), parts
        status = "rejected" if "rule" in told else "accepted"
        row = _row(job.key, source, status, told.get("rule"), told.get("reason"), told.get("entry"), job.part)
        return row | {"notes": told["notes"], "thumbnail": told["thumbnail"]}, int(told["parts"])

    def _parts(self, job: Job) -> int:
        """Volumes of a series whose first one cannot be used: an echo that lost a slice must not cost the others."""
        if not job.dicom:
            return 1
        try:
            return int(run_isolated(count_volumes, (job.files,), self.settings.seconds, self.settings.gigabytes))
        except DataError:
            return 1

    def _job(self, source: Source, key: str, subject: str) -> Job:
        """What a reader process needs to know of an input."""
        hidden = keyed_hash(self.key, subject)
        study, series = (None if uid is None else keyed_hash(self.key, uid) for uid in (source.study, source.series))
        names = {each.number: class_name(each, self.key, self.names) for each in source.label_names}
        return Job(
            key=key,
            files=source.files,
            dicom=source.dicom,
            part=0,
            several=self.settings.volumes > 0,
            label=source.label,
            label_format=source.label_format,
            label_values={number: self.values[name] for number, name in names.items()},
            dataset=self.settings.dataset,
            modality=self.settings.modality or source.modality,
            identity=Identity(hidden, study, series, day_number(self.key, subject, source.date)),
            image_class=source.image_class,
            classes={self.values[name]: name for name in names.values()} or source.classes,
            read=self.settings.read,
            rules=self.settings.rules,
            privacy=self.settings.privacy,
            store=self.store,
        )

    def _subject(self, source: Source, key: str) -> str | None:
        """Name of the patient, not yet hashed; None if the subject setting does not know it."""
        if self.subjects is not None and not (source.dicom and source.person):
            return self.subjects.find(source.stem, source.place)
        return source.person or f"file:{key}"

    def _name_structures(self, found: Discovery) -> None:
        """Give every named structure of DICOM-SEG, RTSTRUCT and mask folders a class of the store."""
        known = {int(value): name for value, name in read_root(self.store)["classes"].items()}
        structures = [each for source in found.sources for each in source.label_names]
        numbered = any(s.label and s.label_format == "file" and not s.classes for s in found.sources)
        names = {class_name(each, self.key, self.names) for each in structures}
        self.values = assign_values(names, known, UNDECLARED if numbered else 1)
        create_store(self.store, {value: name for name, value in self.values.items()})

    def _name_classes(self) -> None:
        """Give label values that no task declares their number as a name."""
        labels = (row["entry"]["label"] for row in self.ledger.rows if row["status"] == "accepted")
        values = {int(value) for label in labels for value in label or {}}
        known = {int(value): name for value, name in read_root(self.store)["classes"].items()}
        create_store(self.store, {value: str(value) for value in values} | known)


_Claim = tuple[Source, str, Row | None]
"""An input, its id, and its ledger row if it need not be read."""


def _row(
    key: str,
    source: Source,
    status: str,
    rule: str | None,
    reason: str | None,
    entry: dict[str, Any] | None = None,
    part: int = 0,
) -> Row:
    kind = "part" if part else source.kind
    row = {"id": key, "kind": kind, "status": status, "rule": rule, "reason": reason, "part": part}
    return row | {"notes": [], "thumbnail": False, "entry": entry}


def _ahead(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], most: int) -> Iterator[U]:
    """Like `pool.map`, in order, but with at most `most` calls ahead of the consumer."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@config
class IngestArgs:
    """Take raw scans into a store.

    Attributes:
        paths: One or more source folders, then the store.
        settings: How to read and what to accept.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    settings: Annotated[IngestConfig, tyro.conf.arg(name="")] = field(default_factory=IngestConfig)

    def __post_init__(self) -> None:
        """Check that there is a source and a store; raises `ConfigError`."""
        require(len(self.paths) >= 2, "paths", "SRC [SRC ...] STORE", " ".join(path.name for path in self.paths))


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep ingest`; returns the exit status.

    Standard output gets one JSON line of `Counts`.
    """
    given = parse(IngestArgs, None, args, "python -m data_prep ingest")
    counts = ingest(given.paths[:-1], given.paths[-1], given.settings)
    print(json.dumps(asdict(counts)))
    if counts.accepted:
        return 0
    log.error("no scan was accepted out of %d found", counts.found)
    return 2
