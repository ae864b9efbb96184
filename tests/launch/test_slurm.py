"""Jobs on a real Slurm: parts of a store that has a URL, and the job that gathers them."""

import os
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from object_store import SECRET, inside
from slurm_daemons import installed, slurm

from launch.__main__ import main
from voxscale.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not installed(), reason="needs Slurm's daemons, and root")]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    with slurm(tmp_path / "slurm") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


def jobs() -> list[str]:
    done = subprocess.run(["squeue", "-h", "-o", "%T"], env=os.environ, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_parts_of_a_store_by_url_are_filled_and_gathered(tmp_path, s3, cluster, capfd):
    (tmp_path / "in").mkdir()
    for number in range(5):
        values = np.random.default_rng(number).integers(-1000, -900, (24, 26, 28)).astype(np.int16)
        values[4:20, 4:22, 4:24] += 1000
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(tmp_path / "in" / f"s{number}.nii")
    url, logs = f"s3://{inside(s3.folder())}", tmp_path / "logs"
    command = ["ingest", tmp_path / "in", url, "--labels", "ignore", "--gigabytes", 4, "--workers", 1]
    command += ["--parts", 2, "--cluster", "slurm", "--cpus", 1, "--partition", "ci"]
    command += ["--work", tmp_path / "work", "--logs", logs]
    assert main(list(map(str, command))) == 0
    assert "submitted 2 parts as job" in capfd.readouterr().err
    deadline = time.monotonic() + 180
    while jobs() and time.monotonic() < deadline:
        time.sleep(0.5)
    written = "".join(path.read_text() for path in logs.rglob("*") if path.suffix in (".out", ".err"))
    assert jobs() == [], written[-2000:]
    assert len(open_store(Path(url)).entries) == 5, written[-2000:]
    assert "ingest: 0 volumes read, 5 were read before" in written  # by the job that gathers
    assert SECRET not in written
