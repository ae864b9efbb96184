"""Jobs on a real Slurm: parts of a store that has a URL and the job that gathers them; a training that is requeued."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from object_store import SECRET, inside
from slurm_daemons import installed, slurm
from tests_stores import make_store

from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from voxscale.contract import InputContract
from voxscale.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not installed(), reason="needs Slurm's daemons, and root")]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    with slurm(tmp_path / "slurm") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


def launch(command: list[object]) -> str:
    """Run `python -m launch`; returns what it says. A process of its own, as a logger belongs to a process."""
    words = [sys.executable, "-m", "launch", *map(str, command)]
    root = Path(__file__).parents[2]
    done = subprocess.run(words, cwd=root, env=os.environ, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def jobs() -> list[str]:
    done = subprocess.run(["squeue", "-h", "-o", "%T"], env=os.environ, capture_output=True, text=True, check=True)
    return done.stdout.split()


def wait_until(what: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.5)


def test_parts_of_a_store_by_url_are_filled_and_gathered(tmp_path, s3, cluster):
    (tmp_path / "in").mkdir()
    for number in range(5):
        values = np.random.default_rng(number).integers(-1000, -900, (24, 26, 28)).astype(np.int16)
        values[4:20, 4:22, 4:24] += 1000
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(tmp_path / "in" / f"s{number}.nii")
    url, logs = f"s3://{inside(s3.folder())}", tmp_path / "logs"
    command = ["ingest", tmp_path / "in", url, "--labels", "ignore", "--gigabytes", 4, "--workers", 1]
    command += ["--parts", 2, "--cluster", "slurm", "--cpus", 1, "--partition", "ci"]
    command += ["--work", tmp_path / "work", "--logs", logs]
    assert "submitted 2 parts as job" in launch(command)
    wait_until(lambda: not jobs())
    written = "".join(path.read_text() for path in logs.rglob("*") if path.suffix in (".out", ".err"))
    assert jobs() == [], written[-2000:]
    assert len(open_store(Path(url)).entries) == 5, written[-2000:]
    assert "ingest: 0 volumes read, 5 were read before" in written  # by the job that gathers
    assert SECRET not in written


def test_a_training_on_two_nodes_that_is_requeued_goes_on_and_ends_with_the_same_losses(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, shards = tmp_path / "data", tmp_path / "shards"
    make_store(tmp_path / "task", 4, labelled=True)
    make_store(data, 5, labelled=False)
    plan = plan_task(tmp_path / "task", 16**3, InputContract(spacing=(2.0, 1.5, 1.5)))
    pack(data, shards, plan.contract, plan.patch, plan.strides, PackConfig(factor=1.25))
    common = ["pretrain", "configs/pretrain.py:demo", "--shards", shards, "--model.width", 2, "--loop.batch", 2]
    common += ["--objective.volume-fusion.block-min", 2, "--objective.volume-fusion.block-max", 6]
    common += ["--loop.log-every", 1, "--loop.checkpoint-every", 2, "--loop.steps", 40, "--tracker.no-wandb"]

    def losses(run: str) -> dict[int, float]:
        path = tmp_path / run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return {row["step"]: row["loss"] for row in map(json.loads, lines)}

    def start(run: str) -> str:
        where = ["--cluster", "slurm", "--nodes", 2, "--processes", 1, "--cpus", 1, "--partition", "ci"]
        return re.findall(r"submitted as job (\d+)", launch([*common, "--run", tmp_path / run, *where]))[-1]

    start("calm")
    wait_until(lambda: not jobs())
    assert sorted(losses("calm")) == list(range(1, 41))
    job = start("requeued")
    wait_until(lambda: len(losses("requeued")) >= 6)
    subprocess.run(["scontrol", "requeue", job], env=os.environ, check=True)
    wait_until(lambda: not jobs())
    assert losses("requeued") == losses("calm")
