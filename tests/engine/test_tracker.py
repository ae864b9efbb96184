"""Metrics reach the file whatever W&B does."""

import itertools
import json
import threading
import time

import pytest
from limits import limited_files

from voxscale.engine import tracker as module
from voxscale.engine.config import TrackerConfig
from voxscale.engine.tracker import Tracker


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_undone_steps_are_forgotten(tmp_path):
    first = Tracker(tmp_path, TrackerConfig(wandb=False), {}, 0)
    for step in (1, 2, 3, 4):
        first.log({"step": step, "loss": float(step)})
    again = Tracker(tmp_path, TrackerConfig(wandb=False), {}, 2)  # went on from a checkpoint at step 2
    again.log({"step": 3, "loss": 0.5})
    assert rows(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 0.5}]
    Tracker(tmp_path, TrackerConfig(wandb=False), {}, 0).log({"step": 0, "probe/x": 1.0})
    assert rows(tmp_path) == [{"step": 0, "probe/x": 1.0}]  # a run that starts anew has no lines, not even of step 0


def test_a_full_disk_holds_lines_up_and_loses_none(tmp_path, caplog):
    caplog.set_level("INFO", logger="voxscale")
    heard = []
    tracker = Tracker(tmp_path, TrackerConfig(wandb=False), {}, 0, heard.append)
    tracker.log({"step": 1})
    with limited_files((tmp_path / "metrics.jsonl").stat().st_size + 5):
        tracker.log({"step": 2})
        tracker.log({"step": 3})
    assert rows(tmp_path) == [{"step": 1}]
    assert caplog.text.count("metrics could not be written: File too large; raise the limit on the size of a file") == 1
    tracker.log({"step": 4})
    assert rows(tmp_path) == heard == [{"step": step} for step in (1, 2, 3, 4)]
    assert caplog.text.count("metrics are written again") == 1
    with limited_files(1):
        tracker.log({"step": 5})
    tracker.close()
    assert rows(tmp_path)[4:] == [{"step": 5}]


def test_a_disk_that_stays_full_costs_old_lines_no_more_memory_and_they_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "HELD_LINES", 16)
    tracker = Tracker(tmp_path, TrackerConfig(wandb=False), {}, 0)
    with limited_files(1):
        for step in range(1, 101):
            tracker.log({"step": step})
            assert len(tracker._held) <= 16
    tracker.log({"step": 101})
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-9:] == list(range(93, 102))  # the newer half is whole
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert gaps == sorted(gaps, reverse=True)  # the older, the sparser
    said = f"metrics are written again; {101 - len(steps)} lines of the time between are missing, as at most 16 are"
    assert said in caplog.text
    caplog.clear()
    tracker.log({"step": 102})
    with limited_files(1):
        for step in range(103, 153):
            tracker.log({"step": step})
        tracker.close()
    assert "the last 50 lines of metrics could not be written" in caplog.text


def test_lines_that_never_could_be_written_are_counted_at_the_end(tmp_path, caplog):
    tracker = Tracker(tmp_path, TrackerConfig(wandb=False), {}, 0)
    with limited_files(1):
        tracker.log({"step": 1})
        tracker.log({"step": 2})
        tracker.close()
    assert "the last 2 lines of metrics could not be written" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_the_metrics_offline_and_nothing_about_the_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("CANARY_PATH", "/hospital/DOE^CANARY")
    monkeypatch.setattr(module, "CLOSE_SECONDS", 300.0)  # a busy machine is not what is tested
    tracker = Tracker(tmp_path, TrackerConfig(), {"config_hash": "abc123def456"}, 0)
    for step in range(1, 6):
        tracker.log({"step": step, "loss": 0.125 * step})
    tracker.close()
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # W&B's own process may still be writing when it says that it has finished
    while b"0.625" not in (data := record.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"abc123def456" in data
    assert b"0.625" in data
    for secret in (b"CANARY", str(tmp_path).encode(), b"test_tracker.py", b"hostname", b'"host"'):
        assert secret not in data, secret
    assert len(rows(tmp_path)) == 5


@pytest.mark.filterwarnings("ignore")
def test_a_failing_wandb_never_stops_the_run(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(ConnectionResetError("gone")))
    tracker = Tracker(tmp_path, TrackerConfig(), {}, 0)
    for step in range(1, 4):
        tracker.log({"step": step})
    tracker.close()
    assert len(rows(tmp_path)) == 3
    assert "W&B is off for this run (ConnectionResetError)" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_a_hanging_wandb_never_stops_the_run(tmp_path, monkeypatch, caplog):
    import wandb

    release = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: release.wait(30))
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(module, "QUEUE_LINES", 2)
    began = time.monotonic()
    tracker = Tracker(tmp_path, TrackerConfig(), {}, 0)
    for step in range(1, 10):
        tracker.log({"step": step})
    tracker.close()
    release.set()
    assert time.monotonic() - began < 5
    assert len(rows(tmp_path)) == 9
    assert "did not keep up" in caplog.text
