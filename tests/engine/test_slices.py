"""Slices are DeepSpeed's own; three ranks' checkpoints are read by one and two, and theirs by three, at any stage."""

from pathlib import Path

import pytest
from forked_ranks import together
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "worker_slices.py"


@pytest.mark.slow
def test_state_goes_from_three_ranks_to_one_and_two_and_back_at_any_stage(tmp_path):
    for world, label, sources in [(3, "3", "-"), (1, "1", "3"), (2, "2", "3"), (3, "back", "1,2")]:
        together(WORKER, world, [str(tmp_path), label, sources], tmp_path / f"out-{label}")
    first = load_file(tmp_path / "3-0" / "whole.safetensors")
    assert {name.split("/")[0] for name in first} == {"weights", "exp_avg", "exp_avg_sq", "ema"}
    assert all(bool(value.any()) for name, value in first.items() if "exp_avg" in name and ".weight" in name)
    assert len(list(tmp_path.glob("back-[12]-[0123]/checkpoints/step-00000002"))) == 8
