"""Two ranks find the losses and gradients of one: of all objectives, term by term, in each step."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import step_gradients
import torch
from forked_ranks import together
from step_gradients import all_gradients
from tests_stores import make_store

WORKER = Path(step_gradients.__file__)
MEASURE = Path(__file__).parent / "worker_measure.py"


STAGES = Path(__file__).parent / "worker_stages.py"
FUSION, PARTS = {"dice", "ce", "ordinal"}, {"decompose", "spread"}
CASES = {
    "fusion within scans": FUSION,
    "fusion within scans, outside": FUSION,
    "fusion across the batch": FUSION,
    "graphs of samples": {"variance"},
    "graphs of crops": {"variance"},
    "graphs of tokens": {"variance", "info_nce"},
    "contrast of samples": set[str](),
    "contrast of tokens": {"info_nce"},
    "parts": PARTS,
    "parts, air": {"compose", *PARTS},
    "parts of all options": {"localise", "compose", *PARTS},
    "masked": set[str](),
    "masked, outside": set[str](),
    "masked told another": {"error"},
    "supervised": set[str](),
    "mixture": {*(f"volume_fusion/{term}" for term in FUSION), "graph_matching/variance", "patch_matching/info_nce"},
}
"""Of each case, terms that are no means over samples: of halves that know nothing of each other they are others."""
SAME = 3e-5
"""Greatest difference of two gradients, as a share of their length; rounding gives up to 1e-5."""
APART = 20 * SAME
MOVED = 1e-4
"""Greatest difference of two moves of the weights, as a share of their length, at all stages in fp32."""


def test_two_ranks_find_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """Whole batch on one rank, halves on two; halves that know nothing of each other show that differences are seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_store(tmp_path / "store", 6, labelled=True)
    together(WORKER, 2, [str(tmp_path / "two.pt"), str(tmp_path / "store"), "|".join(CASES)], tmp_path / "out")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = all_gradients(tmp_path / "store", list(CASES), 0, 1)
    halves = [all_gradients(tmp_path / "store", list(CASES), rank, 2, steps=1) for rank in range(2)]
    torch.set_num_threads(threads)
    assert one.keys() == two.keys() > halves[0].keys()
    seen = {name: set[str]() for name in CASES}
    for name, whole in one.items():
        assert whole.isfinite().all(), name
        case, (_, term, kind) = name.split(": ")[0], name.split(": ")[1].split()
        if kind == "gradient":
            assert float(whole.norm()) > 0, name
            assert float((two[name] - whole).norm() / whole.norm()) < SAME, name
            if name in halves[0]:
                alone = torch.stack([half[name] for half in halves]).mean(0)
                assert float((alone - whole).norm() / whole.norm()) > APART or term not in CASES[case], name
                seen[case].add(term)
        else:
            torch.testing.assert_close(two[name], whole, rtol=1e-6, atol=1e-6, msg=name)
    assert all(terms <= seen[name] for name, terms in CASES.items())


def alike(folder: Path, cases: Sequence[str]) -> None:
    """Check the losses of some steps, and how weights are moved in them, of one rank and of two."""
    found: list[dict[str, dict[str, torch.Tensor]]] = []
    for world in (1, 2):
        arguments = [str(folder / f"{world}.pt"), str(folder / "store"), "|".join(cases)]
        together(STAGES, world, arguments, folder / f"out-of-{world}")
        found.append(torch.load(folder / f"{world}.pt", weights_only=True))
    one, two = found
    assert one.keys() == two.keys() == set(cases)
    for name, whole in one.items():
        assert list(whole) == [f"{step} {what}" for step in range(3) for what in ("loss", "move")]
        for key, value in whole.items():
            assert float(value.norm()) > 0.02, (name, key)  # much more than the last places of the weights
            apart = float((two[name][key] - value).norm() / value.norm())
            assert apart < (MOVED if key.endswith("move") else 1e-6), (name, key, apart)


def test_two_ranks_move_weights_as_one_at_stage_1(tmp_path: Path) -> None:
    """A mixture, and batches in two pieces of which each is paired by itself."""
    alike(tmp_path, ["mixture:1:1", "fusion across the batch:1:2"])


@pytest.mark.slow
def test_two_ranks_move_weights_as_one_at_all_stages(tmp_path: Path) -> None:
    """Each objective at stage 1, some at others, and batches that are taken in two pieces."""
    make_store(tmp_path / "store", 6, labelled=True)
    cases = [f"{name}:1:1" for name in CASES if "," not in name and name != "mixture"]
    cases += [f"{name}:{stage}:1" for name in ("fusion within scans", "supervised", "mixture") for stage in (0, 2, 3)]
    alike(tmp_path, [*cases, "fusion within scans:2:2", "fusion within scans:3:2"])


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
