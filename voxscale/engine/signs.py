"""Signs of life of ranks, and where ranks leave them for one another.

While training runs that is the run folder, as files need no rank to answer
and stay when all is over. Before, there may be no run folder yet and nobody
holds it, so signs go through the store in which ranks find each other; after
training they do as well.
"""

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, Self

from torch._C._distributed_c10d import Store  # torch.distributed hands it on undeclared

from voxscale import dist

Begin = Literal["meet", "inputs", "weights", "engine", "state", "begin"]
End = Literal["test", "score", "pictures"]
Phase = Literal[Begin, End, "start", "data", "forward", "backward", "collective", "optimizer", "checkpoint", "probe"]
State = Literal["running", "asked", "failed", "done"]
BEGINS: tuple[Phase, ...] = ("meet", "inputs", "weights", "engine", "state", "begin")
"""Phases before the first step."""
ENDS: tuple[Phase, ...] = ("test", "score", "pictures")
"""Phases after the last one."""


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
        state: Whether it still trains; `asked`: a signal ended it before the first step.
        text: Why it failed, the name of the signal, or rank 0's verdict.
        calls: Collectives entered so far, the making of groups included.
        line: Where the training thread is: file, line and function.
        parts: Parts of phases that this rank alone has done; no other rank waits for any of them.
        system: Where `pid` counts, see `own_system`.
        born: When the process started, in seconds, by which it is told from a later one with its number.
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
    calls: int
    line: str
    parts: int = 0
    system: str = ""
    born: float = 0.0

    @property
    def far(self) -> tuple[int, int]:
        """How far the rank is: two that wait for each other differ in it."""
        return self.mark, self.calls

    def where(self) -> str:
        """Rank, phase, step and samples in words."""
        samples = f" with samples {list(self.samples)}" if self.samples else ""
        when = f"of step {self.step}"
        if self.phase in BEGINS or self.phase in ENDS:
            when = "before the first step" if self.phase in BEGINS else "after the last step"
        return f"rank {self.rank} on {self.host} (in {self.phase} {when}{samples})"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The sign that was written; None if it is none, or half of one."""
        try:
            values = json.loads(text)
            return cls(**values | {"samples": tuple(values["samples"])})
        except (ValueError, TypeError, KeyError):
            return None

    def written(self) -> str:
        """As text."""
        return json.dumps(asdict(self))


class Board(Protocol):
    """Where ranks leave their signs."""

    def put(self, sign: Beat) -> None:
        """Leave this rank's newest sign; must not raise if that fails for a moment, nor wait for long."""
        ...

    def get(self, rank: int) -> Beat | None:
        """The newest sign of a rank that can be read; must not wait for anybody."""
        ...

    def note(self, mark: tuple[int, int, Phase, tuple[int, ...]]) -> None:
        """Leave a mark of the training thread at once, if that costs next to nothing."""
        ...

    def close(self) -> None:
        """Leave nothing unsaid."""
        ...


class Files:
    """Signs in files of a folder that all ranks see.

    Args:
        folder: It is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = -1
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            path = folder / f"rank{dist.rank()}.place"
            self._place = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)

    def put(self, sign: Beat) -> None:
        """Leave this rank's newest sign."""
        path = self._folder / f"rank{dist.rank()}.json"
        beside = path.with_suffix(".tmp")
        with suppress(OSError):  # a disk that is full or away for a moment must not end a run
            beside.write_text(sign.written())
            beside.replace(path)

    def get(self, rank: int) -> Beat | None:
        """The newest sign of a rank, with the mark that its training thread has left since."""
        try:
            beat = Beat.read((self._folder / f"rank{rank}.json").read_text())
        except (OSError, ValueError):
            return None
        try:
            return _newest(beat, (self._folder / f"rank{rank}.place").read_text())
        except (OSError, ValueError):  # not there yet
            return beat

    def note(self, mark: tuple[int, int, Phase, tuple[int, ...]]) -> None:
        """Leave a mark at once, so that the place of a process that ends in this phase is known."""
        if self._place >= 0:
            with suppress(OSError):
                os.pwrite(self._place, f"{json.dumps(mark)}\n".encode(), 0)

    def close(self) -> None:
        """Close the file of marks."""
        if self._place >= 0:
            os.close(self._place)
            self._place = -1


def _newest(beat: Beat | None, note: str) -> Beat | None:
    """A sign of life with the mark that the training thread has left since."""
    try:
        mark, step, phase, samples = json.loads(note.partition("\n")[0])
    except ValueError:  # not there yet, or being written
        return beat
    if beat is None or mark <= beat.mark:
        return beat
    return replace(beat, mark=mark, step=step, phase=phase, samples=tuple(samples))


class Stored:
    """Signs in the store in which ranks meet; a thread carries them, as the store may be in a process that is stopped.

    Args:
        store: A connection that nobody else uses.
        whom: Ranks whose signs are wanted.
        every: Seconds between two rounds.
    """

    def __init__(self, store: Store, whom: range | tuple[int, ...], every: float) -> None:
        self._store, self._whom, self._every = store, whom, every
        self._mine = ""
        self._found: dict[str, str] = {}
        self._news, self._said = threading.Event(), threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._carry, name="carry signs", daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        while not self._closed:
            self._news.wait(self._every)
            self._news.clear()
            try:
                self._store.set(f"rank{dist.rank()}", self._mine)
                for key in (f"rank{rank}{what}" for rank in self._whom for what in ("", ".place")):
                    if self._store.check([key]):
                        self._found[key] = self._store.get(key).decode()
            except RuntimeError:  # its process is gone for good, which its silence tells
                return
            self._said.set()

    def put(self, sign: Beat) -> None:
        """Leave this rank's newest sign."""
        self._mine = sign.written()
        self._said.clear()
        self._news.set()

    def get(self, rank: int) -> Beat | None:
        """The newest sign of a rank."""
        return _newest(Beat.read(self._found.get(f"rank{rank}", "")), self._found.get(f"rank{rank}.place", ""))

    def note(self, mark: tuple[int, int, Phase, tuple[int, ...]]) -> None:
        """Leave a mark at once; there are few of them before training."""
        with suppress(RuntimeError):
            self._store.set(f"rank{dist.rank()}.place", json.dumps(mark))

    def close(self) -> None:
        """Wait for a moment until the last sign is there."""
        self._said.wait(self._every)
        self._closed = True
        self._news.set()
        self._thread.join(self._every)


class Alone:
    """The sign of a process that has no others."""

    def __init__(self) -> None:
        self._mine: Beat | None = None

    def put(self, sign: Beat) -> None:
        """Remember it."""
        self._mine = sign

    def get(self, rank: int) -> Beat | None:
        """The newest one."""
        return self._mine if rank == dist.rank() else None

    def note(self, mark: tuple[int, int, Phase, tuple[int, ...]]) -> None:
        """Marks go with the next sign."""

    def close(self) -> None:
        """Nothing is left."""


def own_system() -> str:
    """What all processes that see each other's numbers have in common: the machine since its start, the container.

    Names will not do: machines may all be called localhost, and a container in its host's network has the host's name.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def place_of(thread: int) -> str:
    """Where a thread is: file, line and function."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]  # documented, for such uses
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
