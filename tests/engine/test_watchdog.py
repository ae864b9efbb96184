"""A rank that stops, dies, hangs or fails is named by the others, within the time that was promised."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_ports
from warm_python import Process, start

from voxscale.cli import AGAIN
from voxscale.engine import watchdog
from voxscale.engine.signs import Beat, own_system
from voxscale.engine.watchdog import LOST_RANK

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "worker_lost.py"
STARTER = Path(__file__).parent / "worker_lost_start.py"
MORE = [(0, "meet"), (0, "weights"), (1, "meet"), (1, "engine"), (1, "weights")]


def lose(
    folder: Path, worker: Path, words: list[str], patience: float, silence: float, gone: int | None, other: int = 0
) -> tuple[list[int | None], list[str], float]:
    """Start two ranks and wait for the end of one.

    Args:
        folder: For their files.
        worker: What both run.
        words: What it is told.
        patience: Seconds in one phase.
        silence: Seconds without a sign.
        gone: Rank that never ends, if one does not.
        other: Rank that is waited for.

    Returns:
        Statuses, logs and seconds from the loss to that end.
    """
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    logs = [folder / f"log{r}" for r in range(2)]
    started: list[Process] = []
    for r, path in enumerate(logs):
        with path.open("w") as log:
            own = env | {"RANK": str(r), "LOCAL_RANK": str(r)}
            started.append(start([worker, folder, *words, patience, silence], own, log, log))
    try:
        started[other].wait(timeout=120)
        took = time.time() - float((folder / "lost_at").read_text())
        if gone is None:  # a stopped one is ended by the other, as launchers wait for all
            started[1 - other].wait(timeout=30)
    finally:
        for process in started:
            process.kill()
    for process in started:
        process.wait(timeout=30)
    return [p.returncode for p in started], [path.read_text() for path in logs], took


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_process_that_cannot_be_seen_from_here_is_not_called_dead(elsewhere):
    """As on another machine, or in another container, that has the same name."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    own = {"host": socket.gethostname(), "system": own_system() + "x" * elsewhere, "pid": ended.pid}
    beat = Beat("t", 1, 1, 0, 0, "data", (), state="running", text="", calls=0, line="", **own)
    assert watchdog._process(beat) == ("" if elsewhere else "died")
    assert watchdog._process(dataclasses.replace(beat, pid=os.getpid())) == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "hold", "kill", "hang", "fail"])
def test_a_lost_rank_is_named(tmp_path, how):
    patience, silence = (3.0, 60.0) if how == "hang" else (60.0, 3.0)
    codes, logs, took = lose(tmp_path, WORKER, [how], patience, silence, None)
    assert codes[0] == LOST_RANK, logs[0][-2000:]
    assert "rank lost: rank 1 on " in logs[0]
    where = "in data of step 3" if how == "hang" else "in forward of step 3 with samples [28, 29, 30, 31]"
    assert where in logs[0]
    what = {
        "stop": "is stopped",
        "hold": "does not answer",
        "kill": "died",
        "hang": "hangs: nothing new for 3 s",
        "fail": "shard must be whole",
    }
    assert what[how] in logs[0]
    assert took < 3.0 + 12.0  # patience or silence, the beats, and what others get to end by themselves
    assert (tmp_path / "health" / "stacks-rank0.txt").read_text().count("Thread")
    if how == "hang":  # its own watching thread still runs: it tells the same and shows where it hangs
        assert codes[1] == LOST_RANK
        assert "rank lost: rank 1 on " in logs[1]
        assert "worker_lost.py" in (tmp_path / "health" / "stacks-rank1.txt").read_text()
    else:
        assert codes[1] == (1 if how == "fail" else -signal.SIGKILL)


@pytest.mark.slow
def test_a_rank_that_ends_by_itself_is_not_killed_however_long_it_takes(tmp_path):
    codes, logs, _ = lose(tmp_path, WORKER, ["slowly"], 3.0, 3.0, None)
    assert codes == [LOST_RANK, LOST_RANK], "".join(logs)[-3000:]
    assert all("rank lost: rank 1 on " in log for log in logs)


@pytest.mark.slow
def test_ranks_that_were_all_suspended_go_on(tmp_path):
    """As when a scheduler makes room for another job: nobody was silent but while nobody listened."""
    codes, logs, _ = lose(tmp_path, WORKER, ["suspend"], 6.0, 3.0, None)
    assert codes == [0, 0], "".join(logs)[-3000:]
    assert "rank lost" not in "".join(logs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "alone",
            [r"rank 1 on \S+ \(in forward of step 3 with samples \[28, 29, 30, 31\]\) hangs: nothing new for 4 s"],
        ),
        ("apart", [rf"rank {r} on \S+ \(in forward of step 3 with samples \[{24 + 4 * r}, " for r in range(2)]),
    ],
)
def test_ranks_that_wait_in_a_collective_for_ever_are_named_with_it(tmp_path, how, told):
    codes, logs, took = lose(tmp_path, WORKER, [how], 4.0, 60.0, None)
    assert codes == [LOST_RANK, LOST_RANK], "".join(logs)[-3000:]
    for log in logs:
        (said,) = [line for line in log.splitlines() if "rank lost: " in line]
        assert all(re.search(words, said) for words in told), said
        assert ("no rank moves on: rank 0" in said) == (how == "apart")
        assert re.search(r"last at \w+\.py:\d+ in barrier", said), said
    assert took < 4.0 + 12.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "where", "how", "told"),
    [
        (1, "come", "hang", "rank 1 gave no sign of life in the first 8 s"),
        (1, "meet", "stop", "(in meet before the first step) is stopped, no sign of life for "),
        (1, "engine", "hang", "(in engine before the first step) hangs: nothing new for 8 s, last at worker_lost_star"),
        (1, "engine", "kill", "(in engine before the first step) died"),
        (1, "weights", "stop", "(in engine before the first step) is stopped, no sign of life for "),
        (1, "weights", "fail", "(in engine before the first step) ended: shard must be whole, not cut"),
        (0, "engine", "stop", "(in engine before the first step) is stopped, no sign of life for "),
        (0, "engine", "kill", "(in engine before the first step) died"),
    ],
)
def test_a_rank_lost_at_the_start_is_named(tmp_path, who, where, how, told):
    patience, silence = (8.0, 60.0) if how == "hang" else (60.0, 3.0)
    other = 1 - who
    gone = who if where == "come" else None  # nobody has heard of it
    words = [str(who), where, how]
    codes, logs, took = lose(tmp_path, STARTER, words, patience, silence, gone, other)
    assert codes[other] == LOST_RANK, logs[other][-2000:]
    assert f"rank lost: rank {who} " in logs[other]
    assert told in logs[other]
    assert logs[other].count("(most recent call first)") >= 2  # its stacks
    # patience or silence, and what others get to end by themselves
    assert took < (patience if how == "hang" else silence) + 12.0
    if (where, how) == ("engine", "hang"):  # its own watching thread still runs: it tells the same, and where it hangs
        assert codes[who] == LOST_RANK
        assert told in logs[who]
        assert "in lost\n" in logs[who]
    assert not list(tmp_path.glob("begun*"))


@pytest.mark.parametrize(
    ("who", "where"), [(0, "engine"), *[pytest.param(*case, marks=pytest.mark.slow) for case in MORE]]
)
def test_a_signal_to_one_rank_before_the_first_step_ends_all_to_be_started_again(tmp_path, who, where):
    codes, logs, _ = lose(tmp_path, STARTER, [str(who), where, "ask"], 60.0, 3.0, None)
    assert codes == [AGAIN, AGAIN], "".join(logs)[-3000:]
    assert "ended: training was ended by SIGUSR1 outside of its steps" in logs[who]
    # A rank that waits for a new group cannot hear it, so the thread that watches ends it.
    stuck = f"rank lost: rank {who} on "
    assert stuck in logs[1 - who] or "ended: training was ended by SIGUSR1" in logs[1 - who]
    assert "SIGUSR1" in logs[1 - who]
    assert not list(tmp_path.glob("begun*"))
