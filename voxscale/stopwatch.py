"""How long a part of a training step takes, wherever it runs."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch

MOST = 512
"""Pairs of marks that are kept unread."""


class Stopwatch:
    """Sums up the seconds of one part of the work.

    On a CUDA device it is the time between two marks in the order of work there, gaps in which the device waits for
    the host included; marking does not make the host wait. Elsewhere it is the host's.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Generator[None]:
        """Count what is done inside on a device; within a recording of kernels nothing is counted."""
        if device.type != "cuda":
            began = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - began
        elif torch.cuda.is_current_stream_capturing():
            yield
        else:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(device)
            first.record(stream)
            yield
            last.record(stream)
            self._marks.append((first, last))
            if len(self._marks) >= MOST:
                self._read()

    def take(self) -> float:
        """Seconds since the last call; waits for the device to be done with what was counted."""
        self._read()
        taken, self._seconds = self._seconds, 0.0
        return taken

    def _read(self) -> None:
        for first, last in self._marks:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        self._marks.clear()


SOLVER = Stopwatch()
"""Of the solver of graph matching, see `voxscale.matching.solver.solve`."""
WAITING = Stopwatch()
"""Of exchanges of losses between ranks, in which each waits for the slowest, see `voxscale.samples.AllRanks`."""
