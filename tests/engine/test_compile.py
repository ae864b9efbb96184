"""Loading DeepSpeed's operator: what a killed process left behind keeps nobody waiting."""

import subprocess
import sys
from pathlib import Path

import pytest

from voxscale import dist

ROOT = Path(__file__).resolve().parents[2]
START = """
import warnings

warnings.simplefilter("ignore")
import torch
from voxscale.engine.config import EngineConfig, OptimConfig
from voxscale.engine.deepspeed import start_engine

model = torch.nn.Conv3d(1, 2, 3)
start_engine(model, dict(model.named_parameters()), EngineConfig(precision="fp32"), OptimConfig(), 1)
print("started")
"""


@pytest.mark.slow
def test_a_lock_that_a_killed_process_left_is_removed():
    if not any(dist.extensions().glob("*/*.so")):
        pytest.skip("needs the operator to be compiled, which is made at installation")
    lock = next(dist.extensions().glob("*/*.so")).with_name("lock")
    lock.touch()
    try:
        command = [sys.executable, "-c", START]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.endswith("started\n"), done.stderr[-2000:]
        assert not lock.exists()
    finally:
        lock.unlink(missing_ok=True)
