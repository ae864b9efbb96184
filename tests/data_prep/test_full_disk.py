"""Writes that fail half-way: one clear line, status 1, and nothing a later stage would read."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests_stores import make_store

from data_prep.plan import plan_task
from voxscale.config import save_json
from voxscale.contract import InputContract

ROOT = Path(__file__).resolve().parents[2]


def limited(arguments, largest):
    """Run with a limit on the size of any written file: the write that crosses it fails with an OSError."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )


@pytest.mark.slow
def test_pack_that_cannot_write_leaves_no_manifest_and_goes_on_later(tmp_path):
    make_store(tmp_path / "store", 6, labelled=False)
    plan = plan_task(tmp_path / "store", 8**3, InputContract(spacing=(2.0, 2.0, 2.0)))
    save_json(plan, tmp_path / "plan.json")
    arguments = ["data_prep", "pack", tmp_path / "store", tmp_path / "shards", "--plan", tmp_path / "plan.json"]
    done = limited(arguments, 30_000)
    assert done.returncode == 1
    assert "error: files must be readable and writable, but: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "shards" / "manifest.json").exists()
    assert limited(arguments, resource.RLIM_INFINITY).returncode == 0
    assert (tmp_path / "shards" / "manifest.json").exists()
