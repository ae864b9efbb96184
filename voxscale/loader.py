"""Loading batches in worker processes that are watched: one that dies or hangs is named, and the run goes on.

Longer than others because what is watched, replaced and handed out again is one
state, that of `_Pool`: its parts can only be understood side by side.
"""

import atexit
import multiprocessing
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal

from voxscale.batch import Batch, collate
from voxscale.config import config, require
from voxscale.errors import DataError
from voxscale.messages import receive, send
from voxscale.stream.interface import PatchStream
from voxscale.worker import unpack, work

START_S = 300.0
"""Seconds that a worker may take to start; on a busy cluster imports alone take minutes."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a sample while it was loaded.

    Attributes:
        kind: A damaged sample was replaced, or a worker died or hung at it, or is slow: still at it, and waited for.
        index: Global sample index; -1 if the worker was at none.
        worker: Number of the worker.
        reason: Such as `corrupt`, `SIGKILL` or `no sign of life for 60 s`.
        volume: Anonymous id of the scan, if it is known.
    """

    kind: Literal["replaced", "worker_died", "worker_hung", "worker_slow"]
    index: int
    worker: int
    reason: str
    volume: str = ""


@config
class LoaderConfig:
    """How batches are loaded.

    Attributes:
        workers: Loading processes per rank; 0 loads in the training process, where nobody watches.
        ahead: Batches that each worker may be ahead.
        slow_s: Seconds after which a worker that is still at the same sample is named, with the sample.
        patience_s: Seconds after which it counts as hung and is replaced; an object store that is asked again and
            again may take most of them.
        retries: How often a sample at which a worker ended is tried again before it is replaced.
        deaths: Workers that may end in a row without a batch in between before the run stops.
        replaced: Share of samples that may be replaced before the run stops; the first ten are free.
    """

    workers: int = 0
    ahead: int = 2
    slow_s: float = 5.0
    patience_s: float = 60.0
    retries: int = 1
    deaths: int = 8
    replaced: float = 0.01

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.workers >= 0, "loader.workers", "at least 0", self.workers)
        require(self.ahead >= 1, "loader.ahead", "at least 1", self.ahead)
        require(self.slow_s > 0, "loader.slow_s", "positive", self.slow_s)
        require(self.patience_s > 0, "loader.patience_s", "positive", self.patience_s)
        require(self.retries >= 0, "loader.retries", "at least 0", self.retries)
        require(self.deaths >= 1, "loader.deaths", "at least 1", self.deaths)
        require(0 <= self.replaced <= 1, "loader.replaced", "in [0, 1]", self.replaced)


def load(
    stream: PatchStream,
    indices: Iterator[list[int]],
    config: LoaderConfig,
    pin: bool,
    record: Callable[[Event], None],
) -> Generator[Batch]:
    """Load micro-batches in order; whatever happens to workers, the same batches come.

    Args:
        stream: Where samples come from.
        indices: Global indices of each micro-batch, see `voxscale.stream.rank_indices`.
        config: How many workers, and how they are watched.
        pin: Whether to copy into page-locked memory.
        record: Called for everything that a user should be able to read later.

    Raises:
        DataError: As raised by the stream, or with reason `loader_failed` if workers keep ending.
    """
    if config.workers == 0:
        batches: Iterator[Batch] = _here(stream, indices, record)
        yield from (batch.pin_memory() if pin else batch for batch in batches)
        return
    pool = _Pool(stream, indices, config, record)
    try:
        while (batch := pool.next()) is not None:
            yield batch.pin_memory() if pin else batch
    finally:
        pool.close()


def _here(stream: PatchStream, indices: Iterator[list[int]], record: Callable[[Event], None]) -> Iterator[Batch]:
    for batch in indices:
        patches: list[Any] = []
        for index in batch:
            found, bad = stream.sample(index)
            patches += found
            for volume, reason in bad:
                record(Event("replaced", index, 0, reason, volume))
        yield collate(patches)


@dataclass(slots=True)
class _Task:
    """One batch to make: its number, and each sample with the choices to pass over."""

    batch: int
    samples: list[list[int]]


@dataclass(slots=True)
class _Worker:
    """One process, its tasks, the sample that it is at, when it was last heard of, and if it was named since."""

    number: int
    process: Any
    pipe: socket.socket
    life: Any
    tasks: deque[_Task] = field(default_factory=lambda: deque[_Task]())
    index: int = -1
    ready: bool = False
    ended: bool = False
    heard: float = field(default_factory=time.monotonic)
    named: bool = False


class _Pool:
    """The workers of one rank."""

    def __init__(
        self, stream: PatchStream, indices: Iterator[list[int]], config: LoaderConfig, record: Callable[[Event], None]
    ) -> None:
        self._stream, self._indices, self._config, self._record = stream, indices, config, record
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["voxscale.deaf", "voxscale.worker", "voxscale.stream"])
        self._again: deque[_Task] = deque()
        self._made: dict[int, Batch | DataError] = {}
        self._given = self._taken = self._deaths = 0
        self._tries: Counter[int] = Counter()
        self._workers: list[_Worker] = []
        # Python's own way of ending them at its end is SIGTERM, to which they are deaf; this comes before it.
        atexit.register(self.close)
        try:
            for number in range(config.workers):
                self._workers.append(self._start(number))
        except BaseException:
            self.close()
            raise

    def next(self) -> Batch | None:
        """The next batch in order, None after the last."""
        self._give()
        if self._taken == self._given:
            return None
        while self._taken not in self._made:
            self._listen()
            self._watch()
            self._give()
        found = self._made.pop(self._taken)
        self._taken += 1
        if isinstance(found, DataError):
            raise found
        return found

    def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        there, here = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(self._stream, theirs, there), daemon=True)
        try:
            process.start()
        finally:
            theirs.close()
            there.close()
        return _Worker(number, process, ours, here)

    def _give(self) -> None:
        """Hand out tasks, to the worker with the fewest first, so that all are ahead alike."""
        while True:
            worker = min(self._workers, key=lambda each: (len(each.tasks), each.number))
            if len(worker.tasks) >= self._config.ahead:
                return
            task = self._again.popleft() if self._again else self._new()
            if task is None:
                return
            if not worker.tasks:
                worker.heard, worker.named = time.monotonic(), False
            worker.tasks.append(task)
            try:
                send(worker.pipe, {"batch": task.batch, "samples": task.samples})
            except OSError:
                self._replace(worker, "worker_died", self._how(worker))

    def _new(self) -> _Task | None:
        if self._given - self._taken >= self._config.ahead * self._config.workers:
            return None
        batch = next(self._indices, None)
        if batch is None:
            return None
        self._given += 1
        return _Task(self._given - 1, [[index, 0] for index in batch])

    def _listen(self) -> None:
        """Take all messages there are, after waiting a little for one."""
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(pipes), timeout=min(1.0, self._config.slow_s / 4, self._config.patience_s / 4)):
            worker = pipes[pipe]  # pyright: ignore[reportArgumentType]  # it is one of those waited for
            try:
                told, memory = receive(worker.pipe)
            except OSError:
                told, memory = None, None
            if told is not None:
                self._hear(worker, told, memory)
            else:
                self._replace(worker, "worker_died", self._how(worker))

    def _hear(self, worker: _Worker, told: dict[str, Any], memory: int | None) -> None:
        worker.heard, worker.named = time.monotonic(), False
        match told["kind"]:
            case "ready":
                worker.ready = True
            case "at":
                worker.index = told["index"]
            case "batch":
                assert memory is not None  # it comes with every batch
                self._made[told["batch"]] = unpack(memory, told)
                for index, volume, reason in told["bad"]:
                    self._record(Event("replaced", index, worker.number, reason, volume))
                self._finish(worker)
            case _:
                self._made[told["batch"]] = DataError(told["text"], told["reason"])
                self._finish(worker)

    def _finish(self, worker: _Worker) -> None:
        worker.tasks.popleft()
        worker.index = -1
        self._deaths = 0

    def _hear_out(self, worker: _Worker) -> None:
        """Take what is left in the pipe of a process that has ended or closed it."""
        failed = False
        while wait([worker.pipe], timeout=0):
            try:
                told, memory = receive(worker.pipe)
            except OSError:
                # What it had not read yet is told as an error, once and before all that it had written.
                if failed:
                    return
                failed = True
                continue
            if told is None:
                return
            self._hear(worker, told, memory)

    def _watch(self) -> None:
        """Replace workers that ended without a word or show no sign of life; name those that may come to that."""
        for worker in list(self._workers):
            silent = time.monotonic() - worker.heard
            patience = self._config.patience_s if worker.ready else max(START_S, self._config.patience_s)
            if not worker.process.is_alive() and not wait([worker.pipe], timeout=0):
                self._replace(worker, "worker_died", self._how(worker))
            elif worker.tasks and silent > patience:
                self._replace(worker, "worker_hung", f"no sign of life for {patience:g} s")
            elif worker.tasks and worker.ready and not worker.named and silent > self._config.slow_s:
                worker.named = True
                self._record(Event("worker_slow", worker.index, worker.number, f"for {self._config.slow_s:g} s now"))

    def _how(self, worker: _Worker) -> str:
        """How a process ended, after what it said last: the sample that it was at is told before it is begun."""
        worker.process.join(timeout=5)
        self._hear_out(worker)
        code = worker.process.exitcode
        if code is None:
            return "it closed its pipe"
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"

    def _replace(self, worker: _Worker, kind: Literal["worker_died", "worker_hung"], reason: str) -> None:
        """Put a new process in a worker's place, and its tasks back, without the sample that keeps ending workers."""
        index = worker.index
        self._end(worker)
        self._record(Event(kind, index, worker.number, reason))
        self._deaths += 1
        if self._deaths > self._config.deaths:
            where = f"at sample {index}" if index >= 0 else "at no sample"
            raise DataError(
                f"loader.workers must stay alive; {self._deaths} ended in a row, the last was worker {worker.number} "
                f"{where} ({reason}); look at memory per worker, or set loader.workers=0 to see the error",
                "loader_failed",
            )
        if index >= 0:
            self._tries[index] += 1
            if self._tries[index] > self._config.retries:
                self._tries[index] = 0
                self._record(Event("replaced", index, worker.number, reason))
                for task in worker.tasks:
                    task.samples = [[each, spare + (each == index)] for each, spare in task.samples]
        self._again.extendleft(reversed(worker.tasks))
        self._workers[worker.number] = self._start(worker.number)

    def _end(self, worker: _Worker) -> None:
        if worker.ended:
            return
        worker.ended = True
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.life.close()

    def close(self) -> None:
        """End all workers."""
        atexit.unregister(self.close)
        for worker in self._workers:
            self._end(worker)
        self._workers = []
