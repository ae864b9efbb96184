"""Two ranks find the gradients of one: term by term, in each step, of all objectives that need no labels."""

import json
from pathlib import Path

import pytest
import step_gradients
import torch

WORKER = Path(step_gradients.__file__)
MEASURE = Path(__file__).parent / "worker_measure.py"


@pytest.mark.slow
def test_the_mean_gradient_of_two_ranks_is_that_of_one(ranks, tmp_path):
    """But of the terms that are pooled over a rank's samples, which shows that the comparison notices a difference."""
    torch.set_num_threads(1)
    one = step_gradients.gradients(0, 1)
    ranks(WORKER, 2, str(tmp_path / "two.pt"))
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert one.keys() == two.keys()
    assert len({name.split("/")[0] for name in one}) == 5 * step_gradients.STEPS
    for name, whole in one.items():
        assert float(whole.norm()) > 0, name
        apart = float((two[name] - whole).norm() / whole.norm())
        if name.split()[1] in step_gradients.POOLED:
            assert apart > 1e-3, name
        else:
            assert apart < 1e-4, (name, apart)


@pytest.mark.slow
def test_gradients_are_measured_and_balanced_at_stage_3_as_at_stage_2(ranks, tmp_path):
    """Of branches and of their terms, also through stages that are recomputed; weights are given back after all."""
    ranks(MEASURE, 2, str(tmp_path / "told.json"))
    told = json.loads((tmp_path / "told.json").read_text())
    want, found = told["2-0"], told["3-2"]
    assert len([key for key in want["rows"][0] if key.endswith("gradient")]) == 5 + 3
    assert found["held"] == 0 < want["held"]
    for step, (row, other) in enumerate(zip(want["rows"], found["rows"], strict=True)):
        assert row.keys() == other.keys()
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4), step
        for key in row:
            if key.endswith(("gradient", "balance", "dustbin")):
                assert other[key] == pytest.approx(row[key], rel=1e-2), (step, key)
            assert not key.endswith("gradient") or row[key] > 0
    balances = [row["volume_fusion/balance"] for row in want["rows"]]
    assert 1 != balances[0] == balances[1] != balances[2]  # not measured in the second step
