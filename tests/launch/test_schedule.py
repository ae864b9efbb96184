import signal
import threading
import time

import pytest

from launch.schedule import LATE, Job, Schedule
from launch.workers import Worker
from voxscale.errors import TrainingError


class Hand:
    """A runner that can be told to let go."""

    def __init__(self):
        self.stopped = threading.Event()

    def stop(self):
        self.stopped.set()


def test_a_job_that_fails_takes_only_those_that_need_it():
    seen = []

    def fail(_):
        raise TrainingError("no luck")

    jobs = [
        Job("b", lambda _: seen.append("b"), after=("a",)),
        Job("a", lambda _: seen.append("a")),
        Job("bad", fail),
        Job("c", lambda _: seen.append("c"), after=("bad", "a")),
        Job("d", lambda _: seen.append("d"), after=("c",)),
        Job("e", lambda _: seen.append("e")),
    ]
    made = Schedule(jobs, [Hand()])
    made.run()
    assert seen == ["a", "b", "e"]
    missing = {"bad": "no luck", "c": "needs bad, which is missing", "d": "needs c, which is missing"}
    assert made.missing == missing
    assert made.failed == {"bad": "no luck"}


def test_jobs_run_at_the_same_time():
    both = threading.Barrier(2)  # neither passes alone
    made = Schedule([Job(name, lambda _: both.wait(10)) for name in "ab"], [Hand(), Hand()])
    made.run()
    assert made.missing == {}


def test_at_the_limit_jobs_at_work_are_ended_and_the_rest_is_late():
    def work(hand):
        assert hand.stopped.wait(10)
        raise TrainingError("its process was killed")

    made = Schedule([Job("done", lambda _: None), Job("long", work), Job("never", lambda _: None)], [Hand()])
    began = time.monotonic()
    made.run(seconds=0.3)
    assert time.monotonic() - began < 5
    assert made.missing == {"long": LATE, "never": LATE}
    assert made.failed == {}


def test_a_defect_stops_the_schedule_and_is_raised():
    def defect(_):
        raise ZeroDivisionError

    made = Schedule([Job("a", defect), Job("b", lambda _: None)], [Hand()])
    with pytest.raises(ZeroDivisionError):
        made.run()
    assert made.missing["b"] == LATE


def test_a_worker_that_is_stopped_while_its_process_starts_ends(tmp_path, monkeypatch):
    worker = Worker(1)
    process = worker._context.Process
    start, started = process.start, []

    def stopped_meanwhile(self):
        worker.stop()
        start(self)
        started.append(self)

    monkeypatch.setattr(process, "start", stopped_meanwhile)
    with pytest.raises(TrainingError):
        worker.run("pretrain", None, tmp_path)
    assert [one.exitcode for one in started] == [-signal.SIGKILL]
