"""Running out of memory for real, in a process that may have only so much."""

from pathlib import Path

import pytest

from voxscale.engine.memory import is_out_of_memory

WORKER = Path(__file__).parent / "worker_memory.py"


def test_a_step_without_memory_names_tensors_and_levers(ranks, tmp_path):
    (output,) = ranks(WORKER, 1, str(tmp_path), expect=1)
    said = next(line for line in output.splitlines() if "TrainingError: memory must hold a step" in line)
    assert "ran out at step 0" in said
    largest = said.split("Largest: ")[1]
    assert largest.startswith("activation 0 [8, 6, 64, 64, 64] 50.3 MB")
    assert "make micro-batches smaller (engine.accumulate, now 1)" in said
    assert "recompute the stages" in said
    assert "use more ranks with engine.zero_stage 3" in said
    assert "engine.offload" not in said  # there is no other memory than the host's
    assert said.index("recompute") < said.index("more ranks")  # activations are the most here


@pytest.mark.parametrize("text", ["invalid shape", "size mismatch"])
def test_other_errors_are_left_alone(text):
    assert not is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(MemoryError())
