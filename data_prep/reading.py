"""Getting what became of a volume: from the ledger, from a worker's log, or by reading it in another process."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_prep.discover import Source
from data_prep.home import Home
from data_prep.ids import content_id
from data_prep.jobs import Jobs
from data_prep.ledger import Ledger
from data_prep.mirror import LostError, Mirrors
from data_prep.results import Results
from data_prep.scan import Job, take_in
from data_prep.source import state_of
from data_prep.steps import Outcome, holds, made_by, made_of, outcome_of, outcome_of_crash, step_hashes, verdict
from voxscale.errors import DataError
from voxscale.io import NIFTI_SUFFIXES, suffix_of
from voxscale.io.dicom import count_volumes
from voxscale.io.isolate import Readers, preload, run_isolated

preload("data_prep.scan")  # else each process imports it anew

PATIENCE_S = 2.0
"""Seconds after which a process whose reader was killed knows that it was not meant itself."""

LOST = ("unreadable", "object is gone, cut or changed since it was listed")

Taken = list[tuple[str, int, Outcome]]
"""Id, number in its input and outcome of each volume taken of an input."""


class Reading:
    """The volumes of a run. Each thread that asks has at most one reader process at work, which holds one volume."""

    def __init__(self, jobs: Jobs, ledger: Ledger, results: Results, mirrors: Mirrors, home: Home) -> None:
        self.jobs, self.ledger, self.results, self._mirrors, self._home = jobs, ledger, results, mirrors, home
        self._readers = Readers()
        self._limits = {"seconds": jobs.settings.seconds, "gigabytes": jobs.settings.gigabytes}

    def close(self) -> None:
        """End the reader processes that are kept."""
        self._readers.close()

    def name(self, source: Source) -> tuple[Source, str | None]:
        """An input and its id, hashing its bytes only if nobody did; None if they cannot be read.

        The input comes with the state of its files before they were hashed:
        one that is written to meanwhile is looked at again by the next run.
        """
        source = replace(source, state=state_of(source))
        told = self.ledger.told(source)
        key = told[0]["content"] if told and _same_state(source, told[0]) else self.results.content_id(source)
        if key is None:
            try:
                key = content_id(*self._mirrors.here(source.files, source.label))
            except LostError:
                return replace(source, problem=LOST), None
            except OSError:
                return source, None
            self.results.remember(source, key)
        return source, key

    def drop(self, source: Source) -> None:
        """Remove what was copied of an input to hash or read it."""
        self._mirrors.drop(source.files[0])

    def settled(self, source: Source) -> bool:
        """Whether the rows of an input need no second look.

        They do if it or what decided them changed, if a scan's folder or picture is
        gone from the store, or if they were decided without reading, which is done again.
        """
        told = self.ledger.told(source)
        if not told or source.problem is not None or not _same_state(source, told[0]) or told[0]["content"] is None:
            return False
        key = told[0]["content"]
        subject = self.jobs.subject(source, key)
        numbers = self.jobs.numbers(told[0]["parts"], bool(source.label))
        if subject is None or len(numbers) != len(told):
            return False
        jobs = [self.jobs.job(source, key, subject, number) for number in numbers]
        return all(self._holds(job, row) for job, row in zip(jobs, told, strict=True))

    def _holds(self, job: Job, told: Mapping[str, object]) -> bool:
        place, now = int(told["row"]), step_hashes(job)  # type: ignore[call-overload]
        verdict = self.ledger.rows.verdict(place)
        same = holds(told["steps"], told["limit"], verdict.rule, now, self._limits)  # type: ignore[arg-type]
        writes = verdict.status == "accepted" or verdict.thumbnail
        return same and self.ledger.rows.key(place) == job.key and self._intact(job, now, writes, verdict.status)

    def _intact(self, job: Job, now: Mapping[str, str], writes: bool, status: str) -> bool:
        """Whether the files of a volume are there, and nobody may have written others over them."""
        # What writes anything writes a picture.
        there = (status != "accepted" or self._home.has(job.key)) and (not writes or self._home.shows(job.key))
        return there and not (writes and self.results.mixed(job.key, made_of(now)))

    def volumes(self, source: Source, key: str) -> Taken:
        """What became of the volumes of an input, reading those that need it.

        Raises:
            LostError: If it is an object that is not there any more as it was listed.
        """
        try:
            return self._volumes(source, key)
        finally:
            self.drop(source)

    def _volumes(self, source: Source, key: str) -> Taken:
        subject = self.jobs.subject(source, key)
        if subject is None:
            reason = "the subject setting does not know this file"
            return [(key, 0, Outcome(verdict("quarantined", "no_subject", reason)))]
        first = self._volume(source, self.jobs.job(source, key, subject, 0))
        numbers = self.jobs.numbers(first.parts, bool(source.label))
        if first.parts > 1:
            notes = [f"{len(numbers)} of {first.parts} volumes are taken", *first.row["notes"]]
            first = replace(first, row=first.row | {"notes": notes})
        more = [self.jobs.job(source, key, subject, number) for number in numbers[1:]]
        return [(key, 0, first), *((job.key, job.part, self._volume(source, job)) for job in more)]

    def _volume(self, source: Source, job: Job) -> Outcome:
        now = step_hashes(job)
        known = self.ledger.find(source, job.key, now, self._limits)
        found = None if known is None else self.ledger.outcome(*known)
        if found is None or not self._intact(job, now, found.writes, found.row["status"]):
            found = self.results.find(job.key, now, self._limits)
        if found is not None and self._intact(job, now, found.writes, found.row["status"]):
            self.results.taken += 1
            return found
        self.results.begin(job.key, now)
        found = self._read(job, now)
        if found.writes:
            self._home.take(job.key)
        self.results.end(job.key, now, found)
        self.results.read += 1
        return found

    def _read(self, job: Job, now: Mapping[str, str]) -> Outcome:
        settings = self.jobs.settings
        files, label = self._mirrors.here(job.files, job.label)
        job = replace(job, files=files, label=label, ingest=made_by(now))
        call, again = self._readers.call if _plain(job) else run_isolated, True
        while True:
            try:
                told = call(take_in, (job,), settings.seconds, settings.gigabytes)
            except DataError as error:
                if error.reason != "reader_killed" or not again:
                    return outcome_of_crash(error, self._parts(job), now, self._limits)
                # A scheduler that ends a job may reach the reader first: nothing is charged to its file for that.
                again = False
                time.sleep(PATIENCE_S)
            else:
                return outcome_of(told, told["parts"] if "parts" in told else self._parts(job), now)

    def _parts(self, job: Job) -> int:
        """Volumes of a series whose first one cannot be used: an echo that lost a slice must not cost the others."""
        if not job.dicom or job.part > 0 or not job.several:
            return 1
        settings = self.jobs.settings
        try:
            return int(run_isolated(count_volumes, (job.files,), settings.seconds, settings.gigabytes))
        except DataError:
            return 1


def _plain(job: Job) -> bool:
    """Whether a volume may be read in a process that reads others after it.

    NIfTI has no decoder but the store's own. Codecs of DICOM and pictures and
    the readers of ITK are large C libraries, which may do harm without a
    crash: what they touched reads nothing else.
    """
    return not job.dicom and job.label_format == "file" and all(map(_is_nifti, (*job.files, *job.label)))


def _is_nifti(path: Path) -> bool:
    return suffix_of(path) in NIFTI_SUFFIXES


def _same_state(source: Source, told: Mapping[str, object]) -> bool:
    state = source.state or state_of(source)
    return all(told.get(name) == value for name, value in state.items())
