"""`python -m launch ingest|pack --parts N`: real job arrays of submitit on this machine, then the gathering run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from object_store import SECRET, inside
from warm_python import run, start

from data_prep.__main__ import main as data_prep
from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from data_prep.plan import plan_task
from launch.__main__ import main
from voxscale.config import save_json
from voxscale.contract import InputContract
from voxscale.store import open_store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow()


def scans(folder, count, shape=(24, 26, 28)):
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(-1000, -900, shape).astype(np.int16)
        values[4:20, 4:22, 4:24] += 1000
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(folder / f"s{number}.nii")
    return folder


def launch(*arguments):
    return run(["-m", "launch", *arguments])


def bytes_of(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".parts" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_ingest_and_pack_in_parts_are_as_one_run(tmp_path):
    source, calm, store = scans(tmp_path / "in", 6), tmp_path / "calm", tmp_path / "store"
    ingest([source], calm, IngestConfig(workers=2, gigabytes=4.0))
    store.with_name("store.private").mkdir(mode=0o700)
    shutil.copy(tmp_path / "calm.private" / "key", tmp_path / "store.private" / "key")
    done = launch("ingest", source, store, "--cluster", "local", "--parts", 2, "--gigabytes", 4)
    assert done.returncode == 0, done.stderr
    assert "ingest: 0 volumes read, 6 were read before" in done.stderr
    assert bytes_of(store) == bytes_of(calm)
    assert (tmp_path / "store.private").stat().st_mode & 0o077 == 0

    plan = plan_task(calm, 16**3, InputContract(spacing=(2.0, 2.0, 2.0)))
    save_json(plan, tmp_path / "plan.json")
    shutil.copy(calm / "zarr.json", store / "zarr.json")
    shards = {name: tmp_path / f"shards-{name}" for name in ("one", "many")}
    assert (
        data_prep(["pack", *map(str, [store, shards["one"], "--plan", tmp_path / "plan.json", "--shard-mb", 1])]) == 0
    )
    many = launch(
        "pack", store, shards["many"], "--plan", tmp_path / "plan.json", "--shard-mb", 1, "--parts", 2, "--cpus", 1
    )
    assert many.returncode == 0, many.stderr
    assert bytes_of(shards["many"]) == bytes_of(shards["one"])
    assert json.loads((shards["many"] / "manifest.json").read_text())["volumes"] == 6


def test_a_part_that_is_killed_is_made_up_for(tmp_path):
    source, store = scans(tmp_path / "in", 8), tmp_path / "store"
    command = ["-m", "launch", "ingest", source, store, "--parts", 2, "--gigabytes", 4]
    with (tmp_path / "told").open("w") as out:
        launcher = start(command, os.environ, out, out)
    deadline, victim = time.monotonic() + 120, None
    while victim is None and time.monotonic() < deadline:
        for log in (store / "parts").glob("2-of-2/*.jsonl"):
            victim = int(log.name.rsplit("-", 2)[1])
        time.sleep(0.01)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    launcher.wait(timeout=240)
    told = (tmp_path / "told").read_text()
    assert launcher.returncode == 0, told
    assert "part 2/2 did not end well (it was killed)" in told
    rows = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["accepted"] * 8


SBATCH = """#!/bin/sh
n=$(ls "$DRY" | wc -l)
cp "$1" "$DRY/job-$((101 + n)).sh"
echo "Submitted batch job $((101 + n))"
"""
SRUN = """#!/bin/sh
while [ "$1" != "$TASK_PYTHON" ]; do shift; done
exec "$@"
"""


def test_a_store_by_url_on_slurm(tmp_path, s3, monkeypatch, capfd):
    """What is handed to Slurm, then run as Slurm would, one task after another, by nothing but its own script."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "dry").mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DRY", str(tmp_path / "dry"))
    source, url = scans(tmp_path / "in", 3), f"s3://{inside(s3.folder())}"
    command = ["ingest", source, url, "--labels", "ignore", "--gigabytes", 4, "--work", tmp_path / "work"]
    command += ["--parts", 2, "--cluster", "slurm", "--cpus", 1, "--partition", "short"]
    assert main(list(map(str, command))) == 1
    assert "logs must be given where Slurm's jobs fill a store by URL" in capfd.readouterr().err
    assert main([*map(str, command), "--logs", str(tmp_path / "logs")]) == 0
    told = capfd.readouterr().err
    assert "submitted 2 parts as job 101, then job 102 to gather them" in told
    parts, gather = ((tmp_path / "dry" / f"job-{job}.sh").read_text() for job in (101, 102))
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --partition=short",
        "#SBATCH --nodes=1",
    ):
        assert line in parts or line.replace("%2", "%256") in parts, parts
    assert "--export" not in parts  # so jobs have the environment, and with it the object store's address and secrets
    assert "#SBATCH --dependency=afterany:101" in gather
    assert SECRET not in parts + gather + told

    def task(job, number=None):
        told = {"SLURM_JOB_ID": str(job), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
        told |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n1", "TASK_PYTHON": sys.executable}
        if number is not None:
            told |= {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(number)}
        script = ["sh", str(tmp_path / "dry" / f"job-{job}.sh")]
        ran = subprocess.run(script, cwd=tmp_path, env=os.environ | told, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stderr

    for number in (0, 1):
        task(101, number)
    assert "ingest: 0 volumes read, 3 were read before" in task(102)
    assert len(open_store(Path(url)).entries) == 3


def test_a_wrong_command_line_is_told_before_anything_is_submitted(tmp_path):
    scans(tmp_path / "in", 1)
    assert launch("ingest", tmp_path / "in", tmp_path / "store", "--parts", 0).returncode == 1
    done = launch("ingest", tmp_path / "in", tmp_path / "store", "--parts", 2, "--cluster", "cloud")
    assert done.returncode == 2
    assert launch("ingest", tmp_path / "in", tmp_path / "store", "--parts", 2, "--no-such-flag", 1).returncode == 2
    done = launch("pack", tmp_path / "store", "s3://bucket/shards", "--plan", "p.json", "--parts", 2)
    assert "logs must be given where shards have a URL" in done.stderr
    assert not (tmp_path / "store").exists()
    done = launch("ingest", tmp_path / "nowhere", tmp_path / "store", "--parts", 1)
    assert done.returncode == 1
    assert "source folder 1 of 1 must exist" in done.stderr
