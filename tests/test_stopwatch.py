"""Time of a part of the work: on the host by a clock that the test sets, on a device by its events."""

import pytest
import torch

from voxscale import stopwatch
from voxscale.engine.meter import Meter
from voxscale.matching.problem import Problem
from voxscale.matching.solver import SolverConfig, solve
from voxscale.seed import torch_generator
from voxscale.stopwatch import SOLVER, Stopwatch

CPU = torch.device("cpu")


class Clock:
    now = 10.0

    def perf_counter(self) -> float:
        return self.now


def test_seconds_inside_are_summed_and_taken_once(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch()
    for seconds in (1.0, 2.5):
        with watch.running(CPU):
            clock.now += seconds
        clock.now += 100
    assert watch.take() == 3.5
    assert watch.take() == 0

    def fails():
        with watch.running(CPU):
            clock.now += 2
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert watch.take() == 2


class Event:
    """What a device's event does; its time is that of the last record."""

    def __init__(self, enable_timing):
        assert enable_timing
        self.at, self.waited = None, False

    def record(self, stream):
        self.at = stream.now

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, last):
        assert last.waited
        return 1000 * (last.at - self.at)


def test_on_a_device_its_own_time_counts_and_no_recording_does(monkeypatch):
    """Without a device: its events are played."""
    stream = Clock()
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(stopwatch, "MOST", 3)
    watch, device = Stopwatch(), torch.device("cuda")
    for _ in range(4):  # more than are kept unread
        with watch.running(device):
            stream.now += 0.5
    capturing[0] = True
    with watch.running(device):
        stream.now += 7
    assert watch.take() == pytest.approx(2.0)


def some_problem() -> Problem:
    draw = torch_generator(0)
    edges = torch.randint(0, 6, (2, 6, 2), generator=draw)
    vertex, edge = torch.rand(2, 6, 6, generator=draw), torch.rand(2, 6, 2, 6, 2, generator=draw)
    return Problem(vertex, edge, edges, edges)


def test_a_line_of_metrics_gives_the_share_of_solving_where_something_was_solved():
    solve(some_problem(), SolverConfig(steps=4))
    meter = Meter()  # begins anew
    assert "solver_share" not in meter.line(1, 0.1, 1.0)
    solve(some_problem(), SolverConfig(steps=4))
    assert 0 < meter.line(2, 0.1, 1.0)["solver_share"] < 1
    assert SOLVER.take() == 0
