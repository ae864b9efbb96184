"""Jobs that need one another, several at a time: one that fails takes with it only those that need it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from voxscale.errors import VoxScaleError

log = logging.getLogger("voxscale")


class Stoppable(Protocol):
    """What a job is given to work with, one for each that runs at a time."""

    def stop(self) -> None:
        """End whatever it is at."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do.

    Attributes:
        name: Of its own among all.
        work: Does it; a `VoxScaleError` or `OSError` means that it failed.
        after: Names of the jobs that must be done before.
    """

    name: str
    work: Callable[[Any], object]
    after: tuple[str, ...] = ()


LATE, NEEDS = "not reached within the time limit", "needs"


class Schedule:
    """Runs jobs in their order as far as what they need is done.

    Attributes:
        missing: Why each job that is not done is not, by name, once `run` has ended.
    """

    def __init__(self, jobs: Sequence[Job], runners: Sequence[Stoppable]) -> None:
        names = {job.name for job in jobs}
        assert all(names.issuperset(job.after) for job in jobs)
        self._waiting = list(jobs)
        self._runners = runners
        self._done: set[str] = set()
        self._changed = threading.Condition()
        self._over = False
        self._crash: BaseException | None = None
        self._total = len(jobs)
        self.missing: dict[str, str] = {}

    def run(self, seconds: float | None = None) -> None:
        """Run all jobs, or those that are done before the time is over; jobs still at work then are ended.

        Args:
            seconds: Time limit; None for none.
        """
        end = None if seconds is None else time.monotonic() + seconds
        threads = [threading.Thread(target=self._take, args=(runner,), daemon=True) for runner in self._runners]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                if end is not None and time.monotonic() >= end:
                    log.warning("time limit: jobs at work are ended, what is done is kept")
                    break
                with self._changed:
                    self._changed.wait(0.2)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            for runner in self._runners:
                runner.stop()
            for thread in threads:
                thread.join()
        for job in self._waiting:
            self.missing[job.name] = LATE
        if self._crash is not None:
            raise self._crash

    @property
    def failed(self) -> dict[str, str]:
        """Those of `missing` that were begun and failed by themselves."""
        return {name: why for name, why in self.missing.items() if why != LATE and not why.startswith(NEEDS)}

    def _take(self, runner: Stoppable) -> None:
        while (job := self._next()) is not None:
            began, reason = time.monotonic(), ""
            try:
                job.work(runner)
            except (VoxScaleError, OSError) as error:
                reason = LATE if self._over else str(error)
            except BaseException as error:  # a defect: nothing new is begun, and `run` raises it
                with self._changed:
                    self._crash, self._over = error, True
                reason = str(error)
            with self._changed:
                if reason:
                    self.missing[job.name] = reason
                else:
                    self._done.add(job.name)
                so_far = len(self._done) + len(self.missing)
                self._changed.notify_all()
            if not self._over:
                seconds = time.monotonic() - began
                log.info("%s: %s after %.0f s (%d of %d)", job.name, reason or "done", seconds, so_far, self._total)

    def _next(self) -> Job | None:
        """The first job that can begin; None when none ever will."""
        with self._changed:
            while not self._over:
                for job in list(self._waiting):
                    lost = [name for name in job.after if name in self.missing]
                    if lost:
                        self._waiting.remove(job)
                        self.missing[job.name] = f"{NEEDS} {lost[0]}, which is missing"
                    elif self._done.issuperset(job.after):
                        self._waiting.remove(job)
                        return job
                if not self._waiting:
                    return None
                self._changed.wait(1.0)
            return None
