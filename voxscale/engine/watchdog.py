"""Lost ranks: one that hangs, stops or dies is named, and the job ends with that instead of a silent time-out.

The training thread only notes where it is. A thread beside it leaves that
every moment where other ranks see it (`voxscale.engine.signs`); rank 0's reads
the signs of all ranks, the others read rank 0's. When a rank is lost, rank 0
puts the verdict into its own sign, and every rank logs it, dumps its stacks
and leaves. `Watch` does so while training runs, `RanksWatch` from before the
ranks have met until it begins, and again for what they do together behind it.
"""

import faulthandler
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import WatchConfig
from voxscale.engine.signs import ENDS, Alone, Beat, Board, Files, Phase, State, Stored, own_system, place_of
from voxscale.errors import VoxScaleError
from voxscale.signals import SIGNALS, Asked, unheard

log = logging.getLogger("voxscale")

LOST_RANK = 16
"""Exit status of every rank when one is lost: nothing is wrong with the run itself, start it again elsewhere."""

GRACE_S = 5.0
"""What ranks get to fail by themselves when one has, so that an error that all meet is told by each."""

COME_S = 60.0
"""What every rank gets to come, however short the patience is: imports take their time."""


class _Watching:
    """What both watches do.

    Args:
        config: How long a rank may be silent or stay in one phase.
        phase: What the training thread begins with.
        step: Step that training starts with.
        token: Of this watch, the same on all ranks.
        first_s: Seconds until a rank must have given its first sign.
        folder: Where stacks are written; None writes them to standard error.
    """

    def __init__(
        self, config: WatchConfig, phase: Phase, step: int, token: str, first_s: float, folder: Path | None
    ) -> None:
        self._config, self._token, self._first_s, self._folder = config, token, first_s, folder
        self._mark: tuple[int, int, Phase, tuple[int, ...]] = (0, step, phase, ())
        self._trainer = threading.get_ident()
        self._state: State = "running"
        self._text = ""
        self._beats = self._parts = 0
        self._system, self._born = own_system(), psutil.Process().create_time()
        self._board: Board = Alone()
        self._seen: dict[int, tuple[Beat, float, float]] = {}
        self._asked = 0
        self._broken = False
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch ranks", daemon=True)

    @property
    def _every(self) -> float:
        return min(2.0, self._config.patience_s / 5, self._config.silence_s / 5)

    @property
    def _whom(self) -> range:
        return range(dist.world_size() if dist.rank() == 0 else 1)

    @property
    def phase(self) -> Phase:
        """What the training thread is in."""
        return self._mark[2]

    def at(self, phase: Phase, step: int | None = None, samples: Sequence[int] = ()) -> None:
        """Note what the training thread enters."""
        count, last, _, kept = self._mark
        moved = step is not None and step != last
        self._mark = (count + 1, last if step is None else step, phase, tuple(samples) or (() if moved else kept))
        self._board.note(self._mark)

    def done_a_part(self) -> None:
        """Note that this rank is not stuck in its phase, in which others may have more or less to do."""
        self._parts += 1

    def _begin(self, board: Board) -> None:
        self._board = board
        self._began = time.monotonic()
        self._beat()
        self._thread.start()

    def _finish(self, error: BaseException | None) -> None:
        """Say how it ended here.

        Raises:
            Asked: In place of a broken connection, if that broke as another rank was asked to end.
        """
        met = error
        if error is not None and is_connection(error):
            self._broken = True
            error = self._explained(error)
        self._state = "done" if error is None else "asked" if isinstance(error, Asked) else "failed"
        if error is not None:  # other errors may speak of anything, such as paths
            self._text = str(error) if isinstance(error, VoxScaleError | Asked) else type(error).__name__
        self._stop.set()
        self._beat()
        if self._state == "asked" and dist.rank() == 0 and dist.world_size() > 1:
            time.sleep(4 * self._every)  # others read it before rank 0's end looks like the loss of a rank
        self._thread.join(GRACE_S)
        self._board.close()
        if error is not None and error is not met:
            raise error

    def _explained(self, error: BaseException) -> BaseException:
        """Leave a broken connection to the watching thread, which ends the process if a rank is lost."""
        until = time.monotonic() + self._config.silence_s + GRACE_S + 5 * self._every
        while self._thread.is_alive() and not self._asked and time.monotonic() < until:
            self._thread.join(0.1)
        return Asked(self._asked) if self._asked else error

    def _beat(self) -> None:
        with self._writing:
            self._beats += 1
            mark, step, phase, samples = self._mark
            self._board.put(
                Beat(
                    token=self._token,
                    rank=dist.rank(),
                    beat=self._beats,
                    mark=mark,
                    step=step,
                    phase=phase,
                    samples=samples,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    state=self._state,
                    text=self._text,
                    calls=dist.entered(),
                    line=place_of(self._trainer),
                    parts=self._parts,
                    system=self._system,
                    born=self._born,
                )
            )

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._every):
            last = self._forgive(last)
            self._beat()
            for rank in self._whom:
                self._read(rank)
            self._pass_on()
            verdict = self._verdict(self._whom)
            if verdict and not self._stop.is_set():
                self._end(verdict)

    def _forgive(self, last: float) -> float:
        """Hold no time against others in which this thread did not run itself, as where all ranks were suspended.

        Args:
            last: When it began its last round.

        Returns:
            When it begins this one.
        """
        now = time.monotonic()
        away = now - last - self._every
        if away > self._config.silence_s / 2:
            self._began += away
            self._seen = {rank: (beat, heard + away, since + away) for rank, (beat, heard, since) in self._seen.items()}
        return now

    def _read(self, rank: int) -> None:
        """Remember a rank's newest sign of life, and since when it is as far as it is."""
        now = time.monotonic()
        beat = self._board.get(rank)
        if beat is None or beat.token != self._token:
            return
        old = self._seen.get(rank)
        if old is not None and beat.beat == old[0].beat:
            self._seen[rank] = (beat, *old[1:])
        else:
            same = old is not None and _progress(beat) == _progress(old[0])
            self._seen[rank] = (beat, now, old[2] if old is not None and same else now)

    def _pass_on(self) -> None:
        """Send the signal that ended another rank to this process too, as one rank is enough to ask all."""
        others = [beat.text for beat, _, _ in self._seen.values() if beat.state == "asked" and beat.rank != dist.rank()]
        asked = [number for number in SIGNALS if number.name in others]
        if asked and not self._asked:
            self._asked = int(asked[0])
            if not self._broken:  # else the training thread waits for this
                os.kill(os.getpid(), self._asked)

    def _verdict(self, whom: Sequence[int]) -> str:
        """Which rank is lost, and how; empty if none is."""
        now = time.monotonic()
        stuck: list[Beat] = []
        for rank in whom:
            if rank not in self._seen:
                if now - self._began > self._first_s:
                    return f"rank {rank} gave no sign of life in the first {self._first_s:g} s"
                continue
            beat, heard, since = self._seen[rank]
            if rank == 0 and dist.rank() != 0 and beat.text and beat.state == "running":
                return beat.text
            if beat.state == "done":
                continue
            if beat.state in ("failed", "asked"):
                if now - since > GRACE_S:
                    return f"{beat.where()} {'ended:' if beat.state == 'failed' else 'was asked to end by'} {beat.text}"
                continue
            how = _process(beat)
            if now - heard > (3 * self._every if how == "died" else self._config.silence_s):
                silent = f", no sign of life for {now - heard:.1f} s" if how != "died" else ""
                return f"{beat.where()} {how or 'does not answer'}{silent}"
            if now - since > self._config.patience_s:
                stuck.append(beat)
        if not stuck or dist.rank() != 0:  # who is behind can be told by rank 0 alone
            return ""
        running = [beat for beat, _, _ in self._seen.values() if beat.state == "running"]
        least = min(beat.far for beat in running)
        behind = [beat for beat in running if beat.far == least]
        if any(beat not in stuck for beat in behind):  # one of them has only just come as far
            return ""
        who = behind[0].where() if len(behind) == 1 else f"no rank moves on: {', '.join(b.where() for b in behind)};"
        lines = ", ".join(dict.fromkeys(beat.line for beat in behind))
        return f"{who} hangs: nothing new for {self._config.patience_s:g} s, last at {lines}"

    def _end(self, verdict: str) -> None:
        """Tell, and leave; the training thread may be inside a call that never returns."""
        self._text = verdict
        self._beat()
        where = "on standard error" if self._folder is None else "in RUN/health"
        try:
            if self._folder is None:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            else:
                with (self._folder / f"stacks-rank{dist.rank()}.txt").open("w") as handle:
                    faulthandler.dump_traceback(handle, all_threads=True)
        except OSError as trouble:
            log.warning("stacks could not be written: %s", trouble.strerror)
        if dist.rank() == 0:
            time.sleep(4 * self._every)  # others read the verdict before rank 0's end looks like the cause
        log.error(
            "rank lost: %s; every rank ends now, the run goes on from its last checkpoint when it is started again. "
            "Stacks of the ranks that could still write are %s",
            verdict,
            where,
        )
        for rank in self._whom:
            self._read(rank)
        for beat, heard, _ in self._seen.values():
            silent = (
                not beat.text and time.monotonic() - heard > self._config.silence_s
            )  # with a verdict it ends itself
            if (silent or _process(beat)) and beat.state == "running" and beat.rank != dist.rank():
                _end_process(beat)
        leave(unheard(self._asked) if self._asked else LOST_RANK)


class RanksWatch(_Watching):
    """Watches the ranks while they do not train; every rank enters it, and so starts its group.

    That is from before they have met until training begins, or behind it. Signs
    of life go through the store of rank 0, as a run folder may not be there
    yet, or belong to somebody else. Leave it by `close` where training begins,
    or by the end of its block.

    Args:
        config: How long a rank may be silent or stay in one phase, and so also how long others wait for one to come.
        phase: What the ranks enter once they have met.
    """

    _count = 0

    def __init__(self, config: WatchConfig, phase: Phase = "inputs") -> None:
        RanksWatch._count += 1  # ranks make these at the same places, so they agree on it
        super().__init__(config, "meet", 0, f"ranks-{RanksWatch._count}", max(config.patience_s, COME_S), None)
        self._first: Phase = phase
        self._open = False

    def __enter__(self) -> Self:
        """Meet the others.

        Raises:
            ConfigError: If the environment names a rank but not where to meet.
        """
        self._begin(self._meet())
        self._open = True
        try:
            dist.start()
        except BaseException as error:
            self._finish(error)
            raise
        self.at(self._first)
        return self

    def close(self) -> None:
        """Wait for all ranks, still watched; from here on something else watches them."""
        if self._open:
            if self._first not in ENDS:
                self.at("begin")
            try:
                dist.barrier()
            except BaseException as error:
                self._open = False
                self._finish(error)
                raise
            self._open = False
            self._finish(None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Say how it ended here."""
        if error is None:
            self.close()
        elif self._open:
            self._open = False
            self._finish(error)

    def _meet(self) -> Board:
        if dist.world_size() == 1:
            return Alone()
        try:
            store = dist.meet(self._first_s)
        except dist.Error as trouble:
            if dist.rank() == 0:  # the port is taken, or the address not this machine's
                raise
            log.error("rank lost: rank 0 could not be reached in the first %g s: %s", self._first_s, trouble)
            leave(LOST_RANK)
        return Stored(dist.another(store, self._token), self._whom, self._every)


class Watch(_Watching):
    """Watches the ranks while training runs; every rank enters it, and its making waits for all of them.

    Args:
        run: Run folder; signs of life and stacks land in `run/health`.
        config: How long a rank may be silent or stay in one phase.
        step: Step that training starts with.
    """

    def __init__(self, run: Path, config: WatchConfig, step: int = 0) -> None:
        token = str(dist.gather(secrets.token_hex(4))[0])
        super().__init__(config, "start", step, token, config.silence_s, run / "health")
        self._run = run

    def __enter__(self) -> Self:
        self._begin(Files(self._run / "health"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Say how training ended here."""
        self._finish(error)


def _progress(beat: Beat) -> tuple[object, ...]:
    """What changes while a rank moves on."""
    return beat.far, beat.parts, beat.state


def is_connection(error: BaseException) -> bool:
    """Whether an error says that another rank is not there any more."""
    text = str(error).lower()
    named = any(word in text for word in ("gloo", "nccl", "connection", "socket"))
    return isinstance(error, dist.Error) or (isinstance(error, RuntimeError) and named)


def _end_process(beat: Beat) -> None:
    """End a rank that cannot do so itself, being stopped or in a call that lets no thread run: launchers wait for all.

    One of another machine is left to its launcher.
    """
    if beat.system == own_system():
        with suppress(psutil.Error):
            process = psutil.Process(beat.pid)
            if abs(process.create_time() - beat.born) < 1:
                process.kill()


def _process(beat: Beat) -> str:
    """How a process that can be seen from here is: `died`, `is stopped`, or empty if it lives or is elsewhere."""
    if beat.system != own_system():
        return ""
    try:
        status = psutil.Process(beat.pid).status()
    except psutil.NoSuchProcess:
        return "died"
    return {psutil.STATUS_ZOMBIE: "died", psutil.STATUS_DEAD: "died", psutil.STATUS_STOPPED: "is stopped"}.get(
        status, ""
    )
