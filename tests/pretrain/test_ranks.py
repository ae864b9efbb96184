"""Two ranks find the losses and gradients of one: of all objectives, term by term, in each step."""

import json
from pathlib import Path

import pytest
import step_gradients
import torch
from forked_ranks import together
from step_gradients import all_gradients

WORKER = Path(step_gradients.__file__)
MEASURE = Path(__file__).parent / "worker_measure.py"


CASES = ("fusion within scans", "fusion across the batch", "fusion with nothing on a rank")
POOLED = ("dice", "ce", "ordinal", "variance", "patch_matching/info_nce")
"""Terms that are no mean over samples: halves of a batch that know nothing of each other give others."""
SAME = 1e-5
"""Greatest difference of two gradients, as a share of their length, and of two losses; rounding gives up to 3e-6."""


def test_two_ranks_find_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """Whole batch on one rank, halves on two; halves that know nothing of each other show that differences are seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    arguments = [str(tmp_path / "two.pt"), str(tmp_path), ",".join(CASES)]
    together(WORKER, 2, arguments, tmp_path / "out")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = all_gradients(tmp_path, list(CASES), 0, 1)
    halves = [all_gradients(tmp_path, list(CASES), rank, 2) for rank in range(2)]
    torch.set_num_threads(threads)
    assert one.keys() == two.keys() == halves[0].keys()
    assert {name.split(": ")[0] for name in one} == set(CASES)
    for name, whole in one.items():
        assert whole.isfinite().all(), name
        if name.endswith("watched"):
            continue
        assert float(whole.norm()) > 0, name
        assert float((two[name] - whole).norm() / whole.norm()) < SAME, name
        apart = float((torch.stack([half[name] for half in halves]).mean(0) - whole).norm() / whole.norm())
        pooled = name.split()[-2] in POOLED
        assert (apart > 1e-3) == pooled or name.endswith("value"), (name, apart)


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
