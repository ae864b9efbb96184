"""Loading DeepSpeed's operator: what a killed process left behind keeps nobody waiting."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from voxscale import dist
from voxscale.engine.compile import load_ops
from voxscale.errors import ConfigError

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
def test_a_lock_that_a_killed_process_left_is_removed_and_nothing_is_compiled_again():
    if not any(dist.extensions().glob("*/*.so")):
        pytest.skip("needs the operator to be compiled, which is made at installation")
    operator = next(dist.extensions().glob("*/*.so"))
    lock, compiled = operator.with_name("lock"), operator.stat().st_mtime_ns
    lock.touch()
    try:
        command = [sys.executable, "-c", START]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.endswith("started\n"), done.stderr[-2000:]
        assert not lock.exists()
        assert operator.stat().st_mtime_ns == compiled  # what is there is not compiled again
    finally:
        lock.unlink(missing_ok=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is compiled where there is a GPU")
def test_without_a_compiler_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, value in (("CXX", "no-such-compiler"), ("PATH", str(tmp_path))):
        with monkeypatch.context() as here:
            here.delenv("CXX", raising=False)
            here.setenv(name, value)
            with pytest.raises(
                ConfigError, match=r"^g\+\+ must be installed, .*; run `apt-get install g\+\+` on Debian"
            ):
                load_ops()
