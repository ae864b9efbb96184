"""Raw scans to a store: `python -m data_prep ingest SRC [SRC ...] STORE`."""

import json
import logging
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from data_prep.config import IngestConfig
from data_prep.discover import Discovery, Source, discover
from data_prep.ids import Subjects, content_id, keyed_hash, load_key, load_subjects
from data_prep.ledger import Ledger
from data_prep.scan import Job, take_in
from voxscale.config import config, config_hash, parse, require, to_dict
from voxscale.errors import DataError
from voxscale.files import locked
from voxscale.io.isolate import FULL, run_isolated
from voxscale.progress import Progress
from voxscale.store import create_store, read_root

log = logging.getLogger("voxscale")

T = TypeVar("T")
U = TypeVar("U")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the images; found = accepted + rejected + quarantined.

    Attributes:
        found: Images found.
        accepted: In the store.
        rejected: Unusable, with a reason in the ledger.
        quarantined: Usable perhaps, but not without a person's decision (duplicate, no label, no subject, extra
            channel).
        orphan_labels: Labels without image.
        others: Files that are neither.
    """

    found: int = 0
    accepted: int = 0
    rejected: int = 0
    quarantined: int = 0
    orphan_labels: int = 0
    others: int = 0


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
        return Counts(others=found.others)
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
        kept = ("modality", "labels", "subject", "rules")
        decide = {name: value for name, value in to_dict(settings).items() if name in kept}
        decide["table"] = None if subjects is None else subjects.table
        self.store, self.settings, self.subjects = store, settings, subjects
        self.ledger = Ledger(store, private, config_hash(decide))

    def run(self, found: Discovery) -> Counts:
        """Settle every source that is not settled, in the order of discovery."""
        create_store(self.store, found.classes)
        for leftover in [*self.store.glob(".*.tmp"), *self.store.glob(".*.old")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        todo = [source for source in found.sources if not self.ledger.settled(source)]
        workers = self.settings.workers or len(os.sched_getaffinity(0))
        done = len(found.sources) - len(todo)
        with (
            ThreadPoolExecutor(workers) as pool,
            Progress("ingest", len(found.sources), unit="scans", done=done) as bar,
        ):
            try:
                named = _ahead(pool, self._name, todo, 2 * workers)
                for source, row in _ahead(pool, self._settle, self._claim(named, todo), 2 * workers):
                    self.ledger.write(source, row)
                    bar.advance(1)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        self._name_classes()
        return self._count(found)

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

    def _settle(self, claim: "_Claim") -> tuple[Source, Row]:
        """The ledger row of an input, reading it if need be."""
        source, key, row = claim
        if row is not None:
            return source, row
        subject = self._subject(source, key)
        if subject is None:
            return source, _row(key, source, "quarantined", "no_subject", "the subject setting does not know this file")
        job = Job(
            key=key,
            files=source.files,
            dicom=source.dicom,
            label=source.label[0] if source.label else None,
            modality=self.settings.modality or source.modality,
            subject=keyed_hash(self.key, subject),
            classes=source.classes,
            rules=self.settings.rules,
            store=self.store,
        )
        try:
            entry = run_isolated(take_in, (job,), self.settings.seconds, self.settings.gigabytes)
        except DataError as error:
            return source, _row(key, source, "rejected", error.reason, str(error))
        return source, _row(key, source, "accepted", None, None, entry)

    def _subject(self, source: Source, key: str) -> str | None:
        """Name of the patient, not yet hashed; None if the subject setting does not know it."""
        if self.subjects is not None and not (source.dicom and source.person):
            return self.subjects.find(source.stem, source.place)
        return source.person or f"file:{key}"

    def _name_classes(self) -> None:
        """Give label values that no task declares their number as a name."""
        labels = (row["entry"]["label"] for row in self.ledger.rows if row["status"] == "accepted")
        values = {int(value) for label in labels for value in label or {}}
        known = {int(value): name for value, name in read_root(self.store)["classes"].items()}
        create_store(self.store, {value: str(value) for value in values} | known)

    def _count(self, found: Discovery) -> Counts:
        """What became of this run's sources, those settled earlier included."""
        places = [self.ledger.place(source) for source in found.sources]
        rows = [self.ledger.rows[place] for place in places if place is not None]
        images = [row["status"] for row in rows if row["kind"] == "image"]
        rules = Counter(f"{row['status']} {row['rule']}" for row in rows if row["rule"] is not None)
        for rule, count in rules.most_common():
            log.info("ingest: %d %s", count, rule)
        return Counts(
            found=len(images),
            accepted=images.count("accepted"),
            rejected=images.count("rejected"),
            quarantined=images.count("quarantined"),
            orphan_labels=len(rows) - len(images),
            others=found.others,
        )


_Claim = tuple[Source, str, Row | None]
"""An input, its id, and its ledger row if it need not be read."""


def _row(
    key: str, source: Source, status: str, rule: str | None, reason: str | None, entry: dict[str, Any] | None = None
) -> Row:
    return {"id": key, "kind": source.kind, "status": status, "rule": rule, "reason": reason, "entry": entry}


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
