"""The profiler's window: its trace is there, is JSON, and holds what ran in the window and nothing else."""

import json

import torch

from voxscale.engine.config import ProfileConfig
from voxscale.engine.profile import Profiler


def steps(profiler: Profiler, count: int) -> None:
    for step in range(count):
        profiler.begin(step)
        torch.ones(step + 2, 3) @ torch.ones(3, 7)


def shapes(run) -> list[list[int]]:
    trace = json.loads((run / "profile" / "trace-rank0.json").read_text())
    events = [event for event in trace["traceEvents"] if event.get("name") == "aten::mm"]
    return [event["args"]["Input Dims"][0] for event in sorted(events, key=lambda event: event["ts"])]


def test_trace_holds_the_steps_of_the_window(tmp_path):
    with Profiler(tmp_path, ProfileConfig(start=1, steps=2)) as profiler:
        steps(profiler, 5)
    assert shapes(tmp_path) == [[3, 3], [4, 3]]


def test_window_that_reaches_past_the_end_is_written_too(tmp_path):
    with Profiler(tmp_path, ProfileConfig(start=2, steps=9)) as profiler:
        steps(profiler, 4)
    assert shapes(tmp_path) == [[4, 3], [5, 3]]


def test_no_window_no_trace(tmp_path):
    with Profiler(tmp_path, ProfileConfig()) as profiler:
        steps(profiler, 3)
    assert not list(tmp_path.iterdir())
