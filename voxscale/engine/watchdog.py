"""Lost ranks: one that hangs, stops or dies is named, and the job ends with that instead of a silent time-out.

The training thread only notes where it is. A thread beside it writes that
every moment into `RUN/health/rank<r>.json`; rank 0's reads the files of all
ranks, the others read rank 0's. When a rank is lost, rank 0 puts the verdict
into its own file, and every rank logs it, dumps its stacks and leaves. Files
need no rank to answer, and the run folder is shared already.
"""

import faulthandler
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import WatchConfig
from voxscale.errors import VoxScaleError

log = logging.getLogger("voxscale")

Phase = Literal["start", "engine", "data", "forward", "backward", "collective", "optimizer", "checkpoint", "probe"]
State = Literal["running", "failed", "done"]

LOST_RANK = 16
"""Exit status of every rank when one is lost: nothing is wrong with the run itself, start it again elsewhere."""

GRACE_S = 5.0
"""What ranks get to fail by themselves when one has, so that an error that all meet is told by each."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A rank's sign of life.

    Attributes:
        token: Of this start of the run; beats of earlier ones are not looked at.
        rank: Of the process.
        beat: Counts up with every sign.
        mark: Counts the phases that the training thread has entered; equal on all ranks that are equally far.
        step: 0-based step.
        phase: What the training thread is in.
        samples: Global indices of the samples in its hands.
        host: Name of its machine.
        pid: Of the process.
        state: Whether it still trains.
        text: Why it failed, or rank 0's verdict.
    """

    token: str
    rank: int
    beat: int
    mark: int
    step: int
    phase: Phase
    samples: tuple[int, ...]
    host: str
    pid: int
    state: State
    text: str

    def where(self) -> str:
        """Rank, phase, step and samples in words."""
        samples = f" with samples {list(self.samples)}" if self.samples else ""
        return f"rank {self.rank} on {self.host} (in {self.phase} of step {self.step}{samples})"


class Watch:
    """Watches the ranks while training runs; every rank enters it.

    Args:
        run: Run folder; signs of life and stacks land in `run/health`.
        config: How long a rank may be silent or stay in one phase.
        step: Step that training starts with.
    """

    def __init__(self, run: Path, config: WatchConfig, step: int = 0) -> None:
        self._folder, self._config = run / "health", config
        self._token = dist.from_rank_0(secrets.token_hex(4))
        self._mark: tuple[int, int, Phase, tuple[int, ...]] = (0, step, "start", ())
        self._state: State = "running"
        self._text = ""
        self._beats = 0
        self._place = -1
        self._seen: dict[int, tuple[Beat, float, float]] = {}
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch ranks", daemon=True)

    @property
    def _every(self) -> float:
        return min(2.0, self._config.patience_s / 5, self._config.silence_s / 5)

    @property
    def phase(self) -> Phase:
        """What the training thread is in."""
        return self._mark[2]

    def at(self, phase: Phase, step: int | None = None, samples: Sequence[int] = ()) -> None:
        """Note what the training thread enters."""
        count, last, _, kept = self._mark
        moved = step is not None and step != last
        self._mark = (count + 1, last if step is None else step, phase, tuple(samples) or (() if moved else kept))
        if self._place >= 0:  # at once, so that the place of a process that ends in this phase is known
            with suppress(OSError):
                os.pwrite(self._place, f"{json.dumps(self._mark)}\n".encode(), 0)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        with suppress(OSError):
            path = self._folder / f"rank{dist.rank()}.place"
            self._place = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Say how training ended here; a broken connection is left to the watching thread to explain."""
        if error is not None and is_connection(error):
            self._thread.join(self._config.silence_s + GRACE_S + 5 * self._every)  # it ends the process
        self._state = "done" if error is None else "failed"
        if error is not None:  # other errors may speak of anything, such as paths
            self._text = str(error) if isinstance(error, VoxScaleError) else type(error).__name__
        self._stop.set()
        self._beat()
        self._thread.join(GRACE_S)
        if self._place >= 0:
            os.close(self._place)
            self._place = -1

    def _beat(self) -> None:
        with self._writing:
            self._beats += 1
            place = (dist.rank(), self._beats, *self._mark[:2], self._mark[2], self._mark[3])
            beat = Beat(self._token, *place, socket.gethostname(), os.getpid(), self._state, self._text)
            path = self._folder / f"rank{dist.rank()}.json"
            beside = path.with_suffix(".tmp")
            try:  # a disk that is full or away for a moment must not end a run
                beside.write_text(json.dumps(asdict(beat)))
                beside.replace(path)
            except OSError as trouble:
                log.debug("no sign of life could be written: %s", trouble.strerror)

    def _watch(self) -> None:
        whom = range(dist.world_size()) if dist.rank() == 0 else (0,)
        while not self._stop.wait(self._every):
            self._beat()
            for rank in whom:
                self._read(rank)
            verdict = self._verdict(whom)
            if verdict and not self._stop.is_set():
                self._end(verdict)

    def _read(self, rank: int) -> None:
        """Remember a rank's newest sign of life, and since when it and its phase are what they are."""
        now = time.monotonic()
        try:
            values = json.loads((self._folder / f"rank{rank}.json").read_text())
            beat = Beat(**values | {"samples": tuple(values["samples"])})
        except (OSError, ValueError, TypeError, KeyError):
            return
        if beat.token != self._token:
            return
        beat = self._newest(beat)
        old = self._seen.get(rank)
        if old is not None and beat.beat == old[0].beat:
            self._seen[rank] = (beat, *old[1:])
        else:
            same = old is not None and (beat.mark, beat.state) == (old[0].mark, old[0].state)
            self._seen[rank] = (beat, now, old[2] if old is not None and same else now)

    def _newest(self, beat: Beat) -> Beat:
        """The sign of life with the place that the training thread has noted since."""
        try:
            line, _, _ = (self._folder / f"rank{beat.rank}.place").read_text().partition("\n")
            mark, step, phase, samples = json.loads(line)
        except (OSError, ValueError):  # not there yet, or being written
            return beat
        return replace(beat, mark=mark, step=step, phase=phase, samples=tuple(samples)) if mark > beat.mark else beat

    def _verdict(self, whom: Sequence[int]) -> str:
        """Which rank is lost, and how; empty if none is."""
        now = time.monotonic()
        stuck: list[Beat] = []
        for rank in whom:
            if rank not in self._seen:
                if now - self._began > self._config.silence_s:
                    return f"rank {rank} gave no sign of life in the first {self._config.silence_s:g} s"
                continue
            beat, heard, since = self._seen[rank]
            if rank == 0 and dist.rank() != 0 and beat.text and beat.state == "running":
                return beat.text
            if beat.state == "done":
                continue
            if beat.state == "failed":
                if now - since > GRACE_S:
                    return f"{beat.where()} ended: {beat.text}"
                continue
            how = _process(beat)
            # A process that cannot be found may just not be visible from here, as in another container.
            if now - heard > (3 * self._every if how == "died" else self._config.silence_s):
                silent = f", no sign of life for {now - heard:.1f} s" if how != "died" else ""
                return f"{beat.where()} {how or 'does not answer'}{silent}"
            if now - since > self._config.patience_s:
                stuck.append(beat)
        if not stuck or dist.rank() != 0:  # who is behind can be told by rank 0 alone
            return ""
        least = min(beat.mark for beat, _, _ in self._seen.values())
        behind = [beat.where() for beat in stuck if beat.mark == least]
        if not behind:
            return ""
        who = behind[0] if len(behind) == 1 else f"no rank moves on: {', '.join(behind)};"
        return f"{who} hangs: nothing new for {self._config.patience_s:g} s"

    def _end(self, verdict: str) -> None:
        """Tell, and leave; the training thread may be inside a call that never returns."""
        self._text = verdict
        self._beat()
        stacks = self._folder / f"stacks-rank{dist.rank()}.txt"
        try:
            with stacks.open("w") as handle:
                faulthandler.dump_traceback(handle, all_threads=True)
        except OSError as trouble:
            log.warning("stacks could not be written: %s", trouble.strerror)
        if dist.rank() == 0:
            time.sleep(4 * self._every)  # others read the verdict before rank 0's end looks like the cause
        log.error(
            "rank lost: %s; every rank ends now, the run goes on from its last checkpoint when it is started again. "
            "Stacks of the ranks that could still write are in RUN/health",
            verdict,
        )
        leave(LOST_RANK)


def is_connection(error: BaseException) -> bool:
    """Whether an error says that another rank is not there any more."""
    text = str(error).lower()
    named = any(word in text for word in ("gloo", "nccl", "connection", "socket"))
    return isinstance(error, dist.Error) or (isinstance(error, RuntimeError) and named)


def _process(beat: Beat) -> str:
    """How a process of this machine is: `died`, `is stopped`, or empty if it lives or is elsewhere."""
    if beat.host != socket.gethostname():
        return ""
    try:
        status = psutil.Process(beat.pid).status()
    except psutil.NoSuchProcess:
        return "died"
    return {psutil.STATUS_ZOMBIE: "died", psutil.STATUS_DEAD: "died", psutil.STATUS_STOPPED: "is stopped"}.get(
        status, ""
    )
