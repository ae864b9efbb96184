"""Ranks that are lost while cases are segmented and scored, behind the training of an arm; any number trains alike."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from tests_stores import make_store

from data_prep.plan import plan_task
from voxscale.cli import AGAIN
from voxscale.config import save_json
from voxscale.contract import InputContract
from voxscale.engine.watchdog import LOST_RANK

WORKER = Path(__file__).parent / "worker_lost.py"

pytestmark = pytest.mark.slow()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "task", 4, labelled=True)
    plan = plan_task(tmp_path / "task", 16**3, InputContract(spacing=(2.0, 1.5, 1.5)))
    plan = dataclasses.replace(plan, patch=(16, 16, 16), strides=(*[(2, 2, 2)] * 2, *[(1, 1, 1)] * 3))
    save_json(plan, tmp_path / "plan.json")
    return tmp_path


@pytest.mark.parametrize(("how", "who", "phase"), [("hang", 1, "test"), ("score", 0, "score")])
def test_a_rank_that_hangs_behind_the_training_is_named(folder: Path, ranks, how: str, who: int, phase: str) -> None:
    for out in ranks(WORKER, 2, how, str(folder), expect=LOST_RANK):
        told = rf"rank lost: rank {who} on \S+ \(in {phase} after the last step\) hangs: nothing new for 5 s, last at "
        assert re.search(rf"{told}worker_lost\.py:\d+ in hang", out), out[-2000:]
    assert not (folder / f"{how}-2" / "results.json").exists()


def test_a_signal_to_one_rank_behind_the_training_ends_all_to_be_started_again(folder: Path, ranks) -> None:
    outs = ranks(WORKER, 2, "ask", str(folder), expect=AGAIN)
    assert "ended: finetune was ended by SIGUSR1 outside of its steps" in outs[1]
    assert "SIGUSR1" in outs[0]


def test_a_rank_that_segments_for_longer_than_its_patience_but_moves_on_is_waited_for(folder: Path, ranks) -> None:
    ranks(WORKER, 2, "slow", str(folder))
    assert (folder / "slow-2" / "results.json").is_file()


def test_two_ranks_train_by_the_losses_of_one(folder: Path, ranks) -> None:
    """Dice is of all patches of a step, no mean over ranks: that differs by two parts in 10,000 here."""
    found = []
    for world in (1, 2):
        ranks(WORKER, world, "even", str(folder))
        logs = sorted((folder / f"even-{world}").rglob("metrics.jsonl"))
        assert len(logs) == 2  # one for each fold
        rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        found.append([(row["step"], row["dice"], row["cross_entropy"], row["grad_norm"]) for row in rows])
    assert [row[0] for row in found[0]] == [1, 2, 1, 2]
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, rel=1e-5 if one[0] == 1 else 1e-3)
