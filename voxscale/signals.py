"""Signals that ask a stage to end: where it stands, but in training after a step, saved, all ranks together."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from voxscale.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGUSR2 is what submitit has Slurm send before the end of a job."""


class Asked(BaseException):
    """A signal asked this process to end; no `Exception`, so that nothing on its way takes it for trouble of its own.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(name_of(number))
        self.number = number


class StopRequest:
    """Whether this process was asked to end, and by which signal; the first one counts."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler while training; nothing may be saved in here, between two instructions of a step."""
        del frame
        self.number = self.number or number

    def end(self, number: int, frame: FrameType | None) -> None:
        """Their handler elsewhere; it raises once, so that what is cleaned up meanwhile is not disturbed by more."""
        if not self.number:
            self.note(number, frame)
            raise Asked(number)


AGAIN = 75
"""Exit status of a run that was ended by a signal and wants to be started again: EX_TEMPFAIL of sysexits.h."""

_ending = StopRequest()
_unheard: Callable[[int], int] = lambda _: AGAIN  # noqa: E731  # replaced and put back


@contextmanager
def ending(name: str, unheard: Callable[[int], int] | None = None) -> Generator[None]:
    """End a stage where it stands when a signal comes, unless `listening` notes it: what is whole is on disk already.

    Args:
        name: Of the stage.
        unheard: What is left to do, given the signal, if the main thread cannot hear it any more: see `unheard`.

    Raises:
        PreemptedError: If a signal came.
    """
    global _ending, _unheard
    before, _ending, _unheard = (_ending, _unheard), StopRequest(), unheard or _unheard
    try:
        with _handled_by(_ending.end):
            yield
    except Asked as asked:
        said = f"{name} was ended by {asked} outside of its steps: what it had saved is there; start it again to go on"
        raise PreemptedError(said, str(asked)) from None
    finally:
        _ending, _unheard = before


def unheard(number: int) -> int:
    """Do what a signal asks of a process whose main thread waits for a rank that is gone; returns its exit status."""
    return _unheard(number)


@contextmanager
def listening() -> Generator[StopRequest]:
    """Note signals instead of obeying them; one that nobody can have acted on is sent again at the end.

    A signal that came before and was lost on its way out, as in a callback that drops errors, counts as noted.
    """
    request = StopRequest()
    request.number = _ending.number
    with _handled_by(request.note):
        yield request
    if request.number:
        signal.raise_signal(request.number)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Have signals handled, where that can be set: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def name_of(number: int) -> str:
    """Such as SIGTERM."""
    return signal.Signals(number).name
