"""A rank that stops, dies, hangs or fails is named by the others, within the time that was promised."""

import os
import signal
import time
from pathlib import Path

import pytest
from ports import free_ports
from warm_python import Process, start

from voxscale.engine.watchdog import LOST_RANK

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "worker_lost.py"


def lose(folder: Path, how: str, patience: float, silence: float) -> tuple[list[int | None], list[str], float]:
    """Start two ranks and wait for rank 0's end; returns statuses, logs and seconds from the loss to that end."""
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    logs = [folder / f"log{r}" for r in range(2)]
    started: list[Process] = []
    for r, path in enumerate(logs):
        with path.open("w") as log:
            own = env | {"RANK": str(r), "LOCAL_RANK": str(r)}
            started.append(start([WORKER, folder, how, patience, silence], own, log, log))
    try:
        started[0].wait(timeout=120)
        took = time.time() - float((folder / "lost_at").read_text())
        if how != "stop":
            started[1].wait(timeout=30)
    finally:
        for process in started:
            process.kill()
    for process in started:
        process.wait(timeout=30)
    return [p.returncode for p in started], [path.read_text() for path in logs], took


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill", "hang", "fail"])
def test_a_lost_rank_is_named(tmp_path, how):
    patience, silence = (3.0, 60.0) if how == "hang" else (60.0, 3.0)
    codes, logs, took = lose(tmp_path, how, patience, silence)
    assert codes[0] == LOST_RANK, logs[0][-2000:]
    assert "rank lost: rank 1 on " in logs[0]
    where = "in data of step 3" if how == "hang" else "in forward of step 3 with samples [28, 29, 30, 31]"
    assert where in logs[0]
    what = {"stop": "is stopped", "kill": "died", "hang": "hangs: nothing new for 3 s", "fail": "shard must be whole"}
    assert what[how] in logs[0]
    assert took < 3.0 + 12.0  # patience or silence, the beats, and what others get to end by themselves
    assert (tmp_path / "health" / "stacks-rank0.txt").read_text().count("Thread")
    if how == "hang":  # its own watching thread still runs: it tells the same and shows where it hangs
        assert codes[1] == LOST_RANK
        assert "rank lost: rank 1 on " in logs[1]
        assert "worker_lost.py" in (tmp_path / "health" / "stacks-rank1.txt").read_text()
    else:
        assert codes[1] == {"stop": -signal.SIGKILL, "kill": -signal.SIGKILL, "fail": 1}[how]
