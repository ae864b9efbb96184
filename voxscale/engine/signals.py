"""Signals that ask a run to save and end: noted in the handler, acted on at the next step by all ranks together."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGUSR2 is what submitit has Slurm send before the end of a job."""


class StopRequest:
    """Whether this process was asked to end, and by which signal; the first one counts."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler; nothing may be saved in here, between two instructions of a step."""
        del frame
        self.number = self.number or number


@contextmanager
def listening() -> Generator[StopRequest]:
    """Note signals instead of obeying them; the handlers before come back at the end."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name_of(number: int) -> str:
    """Such as SIGTERM."""
    return signal.Signals(number).name
