import dataclasses
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing.forkserver import _forkserver
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from voxscale.batch import Patch, collate
from voxscale.errors import ConfigError, DataError
from voxscale.incidents import Incidents, describe
from voxscale.loader import Event, LoaderConfig, load
from voxscale.worker import pack, unpack

QUICK = LoaderConfig(workers=2, patience_s=2.0)


def make_patch(index: int, spare: int = 0, removed: bool = False, label: bool = False) -> Patch:
    shape = (4 + index % 3, 5, 6)
    voxels = np.random.default_rng([index, spare]).integers(-900, 900, shape).astype(np.int16)
    mask = np.ones(shape, np.uint8)
    return Patch(
        voxels=voxels,
        label=mask if label else None,
        matrix=np.eye(3, 4) * (index + 1),
        scale=(0.5, 0.25),
        seed=(1 << 62) + index,
        index=index,
        volume=f"scan-{index}",
        removed=mask if removed else None,
        mm=np.eye(3, 4) / (index + 1),
    )


class Stream:
    """Samples that do something to their process: once, if `marker` is given, else at every try."""

    def __init__(self, what="", index=-1, marker=None):
        self.what, self.index, self.marker = what, index, marker

    def sample(self, index, spare=0):
        if index == self.index and spare == 0 and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            match self.what:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "segfault":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "exit":
                    os._exit(3)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "slow":
                    time.sleep(1.5)
                case "hang":
                    time.sleep(600)
                case "data":
                    raise DataError("box must lie inside", "bad_box")
                case "other":
                    raise ZeroDivisionError("a number")
                case "path":
                    raise ZeroDivisionError("/secret/name")
                case "damaged":
                    return [make_patch(index, 1)], [("scan-x", "corrupt")]
        return [make_patch(index, spare, label=True), make_patch(index, spare, removed=index % 2 == 0)], []


def batches(count=8, size=2):
    return iter([[n * size + k for k in range(size)] for n in range(count)])


def run(stream, config=QUICK, count=8):
    events = []
    return list(load(stream, batches(count), config, False, events.append)), events


def same(one, two):
    parts = ("voxels", "label", "sizes", "matrix", "scale", "removed")
    pairs = [(getattr(one, name), getattr(two, name)) for name in parts]
    return (one.seeds, one.indices) == (two.seeds, two.indices) and all(
        (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs
    )


def own_processes():
    """The fork server and the processes it forked; other children of this process are servers of other tests."""
    server = psutil.Process(_forkserver._forkserver_pid)
    return server, [p for p in server.children() if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in alive if p.ppid() != os.getpid()]  # children of the fork server
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 3  # the fork server's own, once


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_makes_the_same_batches_in_the_same_order(workers):
    plain, _ = run(Stream(), LoaderConfig())
    found, events = run(Stream(), LoaderConfig(workers=workers))
    assert [b.indices for b in found] == [tuple(i for i in (2 * n, 2 * n, 2 * n + 1, 2 * n + 1)) for n in range(8)]
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))
    assert not events


@pytest.mark.parametrize(
    ("what", "reason"),
    [("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "exit code 3"), ("hang", "no sign of life")],
)
def test_a_worker_that_ends_once_costs_nothing(tmp_path, what, reason):
    plain, _ = run(Stream(), LoaderConfig())
    began = time.monotonic()
    found, events = run(Stream(what, 5, str(tmp_path / "marker")))
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))
    assert [(e.kind, e.index) for e in events] == [("worker_hung" if what == "hang" else "worker_died", 5)]
    assert events[0].reason.startswith(reason)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_worker_is_named_long_before_it_counts_as_hung(tmp_path, workers):
    """It then goes on and nothing is replaced; said once a sample, and not of those that merely have nothing to do."""
    plain, _ = run(Stream(), LoaderConfig())
    config = LoaderConfig(workers=workers, slow_s=0.4)
    found, events = run(Stream("slow", 5, str(tmp_path / "marker")), config)
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))
    assert [(e.kind, e.index, e.reason) for e in events] == [("worker_slow", 5, "for 0.4 s now")]
    assert describe(events[0]) == f"loading process {events[0].worker} is waited for at sample 5 (for 0.4 s now)"
    assert LoaderConfig().slow_s <= 10 < LoaderConfig().patience_s


def test_a_hung_worker_is_named_first_and_then_replaced(tmp_path):
    config = LoaderConfig(workers=2, slow_s=0.5, patience_s=2.0)
    _, events = run(Stream("hang", 5, str(tmp_path / "marker")), config)
    assert [(e.kind, e.index) for e in events] == [("worker_slow", 5), ("worker_hung", 5)]


def test_a_stopped_worker_counts_as_hung(tmp_path):
    _, events = run(Stream("stop", 3, str(tmp_path / "marker")))
    assert [(e.kind, e.index) for e in events] == [("worker_hung", 3)]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_sample_that_keeps_ending_workers_is_replaced(workers):
    plain, _ = run(Stream(), LoaderConfig())
    found, events = run(Stream("kill", 5), LoaderConfig(workers=workers, patience_s=2.0))
    assert [(e.kind, e.index) for e in events] == [("worker_died", 5), ("worker_died", 5), ("replaced", 5)]
    for number, (a, b) in enumerate(zip(plain, found, strict=True)):
        assert same(a, b) == (number != 2)
    rows = [make_patch(4, label=True), make_patch(4, removed=True), make_patch(5, 1, label=True), make_patch(5, 1)]
    assert same(found[2], collate(rows))


def test_the_sample_of_a_worker_that_died_unheard_is_named():
    """What a dead worker last said is read before more is given to it, which fails."""
    events = []
    config = dataclasses.replace(QUICK, workers=1, ahead=2)
    loaded = load(Stream("kill", 3), batches(8), config, False, events.append)
    next(loaded)
    time.sleep(2.0)  # it dies in the second batch; the third is to be given to it before anything is heard
    assert len(list(loaded)) == 7
    assert [(e.kind, e.index) for e in events] == [("worker_died", 3), ("worker_died", 3), ("replaced", 3)]


def test_too_many_deaths_stop_with_a_message():
    with pytest.raises(DataError, match=r"loader.workers must stay alive; 3 ended in a row.*at sample 5 \(SIGKILL\)"):
        run(Stream("kill", 5), LoaderConfig(workers=1, retries=9, deaths=2))


def test_a_worker_killed_from_outside_is_replaced():
    events = []
    loaded = load(Stream(), batches(30), QUICK, False, events.append)
    found = [next(loaded)]
    own_processes()[1][0].kill()
    found += list(loaded)
    plain, _ = run(Stream(), LoaderConfig(), 30)
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))
    assert [e.kind for e in events] == ["worker_died"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_a_scheduler_sends_to_every_process_end_no_worker(number):
    """More workers than may end in a row, which would end the run."""
    _forkserver._stop()  # one that an earlier test of this process started may not be deaf, unlike that of a training
    events = []
    loaded = load(Stream(), batches(60), LoaderConfig(workers=4, deaths=2), False, events.append)
    found = [next(loaded) for _ in range(8)]  # each worker has made some
    server, workers = own_processes()
    assert len(workers) == 4
    for process in (server, *workers):
        process.send_signal(number)
    found += list(loaded)
    plain, _ = run(Stream(), LoaderConfig(), 60)
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))
    assert events == []
    again, events = run(Stream(), QUICK)  # from the same server
    assert len(again) == 8
    assert events == []


def test_a_parent_that_leaves_its_loader_open_ends_with_its_workers(tmp_path):
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_loader import Stream, batches
        from voxscale.loader import LoaderConfig, load
        if __name__ == "__main__":
            loaded = load(Stream(), batches(1000), LoaderConfig(workers=2), False, print)
            next(loaded)
    """
    (tmp_path / "parent.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, tmp_path / "parent.py", Path(__file__).parent], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("what", "text", "reason"),
    [
        ("data", "box must lie inside", "bad_box"),
        ("other", "ZeroDivisionError: a number", "loader_failed"),
        ("path", "details are withheld", "loader_failed"),
    ],
)
def test_an_exception_arrives_in_its_turn(what, text, reason):
    loaded = load(Stream(what, 5), batches(), QUICK, False, print)
    assert len([next(loaded), next(loaded)]) == 2
    with pytest.raises(DataError, match=text) as error:
        next(loaded)
    assert error.value.reason == reason


@pytest.mark.parametrize("workers", [0, 2])
def test_replaced_samples_are_told(workers):
    _, events = run(Stream("damaged", 5), LoaderConfig(workers=workers))
    assert [(e.kind, e.index, e.reason, e.volume) for e in events] == [("replaced", 5, "corrupt", "scan-x")]


def test_a_consumer_that_stops_early_leaves_nothing():
    loaded = load(Stream(), batches(100), QUICK, False, print)
    next(loaded)
    loaded.close()


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    script = """
        import sys, threading, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_loader import Stream, batches
        from voxscale.loader import LoaderConfig, load
        import psutil
        if __name__ == "__main__":
            loaded = load(Stream("hang", 0, sys.argv[2]), batches(), LoaderConfig(workers=2), False, print)
            threading.Thread(target=lambda: next(loaded), daemon=True).start()
            while not Path(sys.argv[2]).exists():  # until a worker is at its sample
                time.sleep(0.05)
            print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
            time.sleep(600)
    """
    (tmp_path / "parent.py").write_text(textwrap.dedent(script))
    command = [sys.executable, tmp_path / "parent.py", Path(__file__).parent, tmp_path / "marker"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) >= 3  # the fork server and two workers
        parent.kill()
    deadline = time.monotonic() + 30
    while (left := [child for child in children if lives(child)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def lives(process: psutil.Process) -> bool:
    """Whether a process runs: not one that only waits to be collected, nor another one that has its number now."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Tiny:
    """As slices of two dimensions, of which thousands make a batch."""

    def sample(self, index, spare=0):
        patch = make_patch(index)
        small = dataclasses.replace(patch, voxels=np.full((1, 1, 1), index % 999, np.int16))
        bad = [(f"scan-{index}", "corrupt")] * (spare == 0 and index % 5 == 0)
        return [small, small], bad


def test_a_batch_may_have_any_number_of_samples():
    """What is told of them does not fit into a message of the system's from some thousand on."""
    size, events = 9000, []
    wanted = [list(range(10**12 + n * size, 10**12 + (n + 1) * size)) for n in range(3)]
    found = list(load(Tiny(), iter(wanted), LoaderConfig(workers=1), False, events.append))
    assert [batch.indices[::2] for batch in found] == [tuple(indices) for indices in wanted]
    assert all(batch.seeds == tuple((1 << 62) + index for index in batch.indices) for batch in found)
    assert found[1].voxels.flatten().tolist() == [index % 999 for index in found[1].indices]
    assert [event.kind for event in events] == ["replaced"] * (3 * size // 5)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("label", [False, True])
def test_a_batch_survives_its_memory(removed, label):
    batch = collate([make_patch(n, 0, removed, label) for n in range(3)])
    memory, told = pack(batch)
    found = unpack(memory, told)
    assert same(batch, found)
    found.voxels.add_(1)  # memory of its own
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(memory)


def test_incidents_are_kept_and_too_many_stop(tmp_path):
    incidents = Incidents(tmp_path, 1, 0.1)
    incidents.record(Event("worker_died", 3, 0, "SIGKILL"))
    for n in range(10):
        incidents.record(Event("replaced", n, 0, "corrupt", "scan"))
    with pytest.raises(DataError, match="11 samples had to be replaced while 0 were delivered") as error:
        incidents.record(Event("replaced", 11, 0, "corrupt", "scan"))
    assert error.value.reason == "too_many_replaced"
    assert len((tmp_path / "incidents-rank1.jsonl").read_text().splitlines()) == 12
    patient = Incidents(None, 0, 0.5)
    assert len(list(patient.counting(iter(run(Stream(), LoaderConfig(), 20)[0])))) == 20
    assert patient.delivered == 40
    for n in range(20):
        patient.record(Event("replaced", n, 0, "corrupt"))
    with pytest.raises(DataError):
        patient.record(Event("replaced", 21, 0, "corrupt"))


@pytest.mark.parametrize(
    "values",
    [
        {"workers": -1},
        {"ahead": 0},
        {"slow_s": 0.0},
        {"patience_s": 0.0},
        {"retries": -1},
        {"deaths": 0},
        {"replaced": 1.5},
    ],
)
def test_bad_config_is_refused(values):
    with pytest.raises(ConfigError, match="loader."):
        LoaderConfig(**values)
