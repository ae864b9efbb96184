"""Steps that are bad in a row: back to the last good checkpoint behind those samples, and a stop if they come again."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from voxscale.cli import AGAIN
from voxscale.engine.checkpoint import read_about, step_of, verify
from voxscale.engine.config import GuardConfig
from voxscale.engine.guard import limit

WORKER = Path(__file__).parent / "worker_rollback.py"
NAN, SPIKE = "NaN", 1e4
WORLDS = [1, pytest.param(2, marks=pytest.mark.slow)]


def planted(steps: dict[int, str | float]) -> str:
    """One bad sample of the 8 in each of these steps."""
    return json.dumps({8 * step + 3: factor for step, factor in steps.items()})


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["3-fp32-none-1", pytest.param("1-bf16-none-2", marks=pytest.mark.slow)])
def test_run_goes_back_and_leaves_the_samples_behind(ranks, tmp_path, world, case):
    outputs = ranks(WORKER, world, str(tmp_path), case, planted({5: NAN, 6: SPIKE}))
    assert [line for line in outputs[0].splitlines() if line.startswith("restored")] == ["restored step-00000004"]
    told = rows(tmp_path / "incidents-rank0.jsonl")
    assert [(row["kind"], row["step"]) for row in told] == [("bad_step", 5), ("bad_step", 6), ("went_back", 6)]
    assert told[2]["to"] == 4
    assert told[0]["value"] == "nan"
    assert told[1]["value"] > told[1]["limit"]
    for row in told[:2]:
        seen = sorted(i for rank in row["ranks"] for part in rank for i in part["samples"])
        assert seen == list(range(8 * row["step"], 8 * row["step"] + 8))
    metrics = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 13))  # no step is made twice: the data go on
    assert [row["skipped"] for row in metrics] == [0] * 5 + [1] + [2] * 6
    assert ["loss" in row for row in metrics] == [row["step"] not in (6, 7) for row in metrics]
    # Nothing is saved between the first bad step and the way back.
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in (2, 4, 8, 10, 12)]
    check_report(tmp_path, metrics, world, accumulate=int(case[-1]))


def check_report(run: Path, metrics: list[dict], world: int, accumulate: int) -> None:
    """What the loop tells of itself: time, operations, memory, and a profile of the third step."""
    for row in metrics:
        if "loss" in row:  # a step takes a million operations a sample, and of a skipped one no sample counts
            assert row["tflops"] == pytest.approx(1e6 * row["samples_per_s"] / world / 1e12)
        assert row["compute"] == pytest.approx(1 - row["data_wait"] - row["save_wait"], abs=1e-9)
        assert row["rss_gb"] > 0.1
    late = metrics[3 // accumulate]  # each rank waited 0.2 s
    assert late["data_wait"] * 8 / late["samples_per_s"] > 0.199
    assert all(row["save_wait"] > 0 for row in metrics if row["step"] in (3, 5, 9, 11))  # a save counts after its line
    for rank in range(world):
        trace = json.loads((run / "profile" / f"trace-rank{rank}.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("aten::group_norm") == accumulate, rank  # of one forward pass for each micro-batch


@pytest.mark.parametrize("world", WORLDS)
def test_run_stops_with_a_diagnosis_if_it_is_bad_again(ranks, tmp_path, world):
    outputs = ranks(WORKER, world, str(tmp_path), "1-fp32-none-1", planted(dict.fromkeys((4, 5, 6, 7), NAN)), expect=3)
    for output in outputs:
        said = next(line for line in output.splitlines() if line.startswith("stopped: "))
        assert "2 bad ones in a row, and the run had already gone back to older weights" in said
        for step in (6, 7):
            assert f"loss at step {step} must be" in said
            assert str(8 * step + 3) in said
        assert "lower optim.lr or engine.clip" in said
    kinds = [(row["kind"], row["step"]) for row in rows(tmp_path / "incidents-rank0.jsonl")]
    assert kinds == [("bad_step", 4), ("bad_step", 5), ("went_back", 5), ("bad_step", 6), ("bad_step", 7)]


@pytest.mark.parametrize("world", WORLDS)
def test_run_goes_back_behind_what_signals_saved_within_the_row(ranks, tmp_path, world):
    def go(stop: int, expect: int) -> list[str]:
        more = json.dumps({"keep": 2, "in_a_row": 3, "stop": stop})
        (output, *_) = ranks(WORKER, world, str(tmp_path), "1-fp32-none-1", bad, more, expect=expect)
        return [line for line in output.splitlines() if line.startswith("restored")]

    bad = planted({5: NAN, 6: SPIKE, 7: NAN})
    go(5, AGAIN)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000006"]  # the last is suspected
    assert go(6, AGAIN) == ["restored step-00000006"]  # a run goes on where it stood, bad steps counted
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000007"]
    assert go(-1, 0) == ["restored step-00000007", "restored step-00000004"]
    told = [(row["kind"], row["step"], row.get("to")) for row in rows(tmp_path / "incidents-rank0.jsonl")]
    assert told == [*(("bad_step", step, None) for step in (5, 6, 7)), ("went_back", 7, 4)]
    assert names(tmp_path) == ["step-00000010", "step-00000012"]


def test_run_without_a_checkpoint_from_outside_the_row_stops(ranks, tmp_path):
    bad = planted({1: NAN, 2: NAN})
    ranks(WORKER, 1, str(tmp_path), "1-fp32-none-1", bad, json.dumps({"stop": 1}), expect=AGAIN)
    assert names(tmp_path) == ["step-00000002"]
    (output,) = ranks(WORKER, 1, str(tmp_path), "1-fp32-none-1", bad, expect=3)
    assert "2 bad ones in a row, and there is no good checkpoint yet to go back to" in output


@pytest.mark.parametrize("world", WORLDS)
def test_run_goes_back_further_if_the_save_in_flight_fails(ranks, tmp_path, world):
    more = json.dumps({"full": [4]})
    (output, *_) = ranks(WORKER, world, str(tmp_path), "1-fp32-none-1", planted({4: NAN, 5: NAN}), more, expect=None)
    assert [line for line in output.splitlines() if line.startswith("restored")] == ["restored step-00000002"], output
    assert output.count("checkpoint at step 4 could not be written: File too large") == 1
    assert "went back to the weights of step 2 after 2 bad steps in a row" in output
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 6, 8, 10, 12)]


@pytest.mark.parametrize("world", WORLDS)
def test_a_damaged_checkpoint_that_a_run_went_back_behind_is_kept_and_does_not_count(ranks, tmp_path, world):
    more = json.dumps({"keep": 2, "damaged": 6, "stop": 8})
    (output, *_) = ranks(WORKER, world, str(tmp_path), "1-fp32-none-1", planted({6: NAN, 7: NAN}), more, expect=AGAIN)
    assert "step-00000006/state-00000-of-" in output  # named as damaged
    assert "restored step-00000004" in output
    assert names(tmp_path) == ["step-00000006", "step-00000008", "step-00000009"]


def test_run_stops_if_it_would_go_back_to_the_same_checkpoint_as_no_save_worked_since(ranks, tmp_path):
    bad, more = planted(dict.fromkeys((4, 5, 8, 9), NAN)), json.dumps({"full": [4, 6, 8]})
    (output,) = ranks(WORKER, 1, str(tmp_path), "1-fp32-none-1", bad, more, expect=3)
    assert output.count("went back to the weights of step 2") == 1
    assert "and the run had already gone back to its last checkpoint, step-00000002. Seen: loss at step 8" in output


@pytest.mark.slow
def test_run_may_go_back_again_once_good_steps_are_saved(ranks, tmp_path):
    outputs = ranks(WORKER, 1, str(tmp_path), "1-fp32-none-1", planted(dict.fromkeys((4, 5, 8, 9), NAN)))
    restored = [line for line in outputs[0].splitlines() if line.startswith("restored")]
    assert restored == ["restored step-00000004", "restored step-00000008"]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_statistics_go_on_with_the_same_bits(ranks, tmp_path, world):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    bad = planted({7: SPIKE, 9: NAN})
    ranks(WORKER, world, str(whole), "1-fp32-none-1", bad)
    parted.mkdir()
    for step in (4, 6):  # as if it had been killed after step 6; the last four good steps are in the checkpoint
        name = f"checkpoints/step-{step:08d}"
        shutil.copytree(whole / name, parted / name)
    ranks(WORKER, world, str(parted), "1-fp32-none-1", bad)
    told = rows(whole / "incidents-rank0.jsonl")
    assert [row["step"] for row in told] == [7, 9]
    assert told == rows(parted / "incidents-rank0.jsonl")  # values and limits, to the last bit
    ours, theirs = (torch.load(run / "final.pt", weights_only=True) for run in (parted, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    both = [
        [(row["step"], row.get("loss"), row["grad_norm"]) for row in rows(r / "metrics.jsonl")] for r in (parted, whole)
    ]
    assert both[0] == both[1][6:]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("step", [4, 12])
def test_a_signal_while_a_save_is_written_leaves_it_and_the_one_it_asks_for_whole(ranks, tmp_path, step, world):
    more = json.dumps({"within": [step]})
    (output, *_) = ranks(WORKER, world, str(tmp_path), "1-fp32-none-1", "{}", more, expect=AGAIN)
    saved = [tmp_path / "checkpoints" / name for name in names(tmp_path)]
    assert [step_of(path) for path in saved][: step // 2] == list(range(2, step + 1, 2))
    for path in saved:
        verify(path)
    ended = max(map(step_of, saved))
    told = f"ended: test was ended by SIGTERM after step {ended}: step {ended} is saved"
    assert ended > 4
    assert (told if step == 4 else "ended: test was ended by SIGTERM outside of its steps: what it had saved") in output
    (output, *_) = ranks(WORKER, world, str(tmp_path), "1-fp32-none-1", "{}")
    assert f"restored step-{ended:08d}" in output


@pytest.mark.slow
def test_steps_that_were_bad_on_two_ranks_count_on_one(ranks, tmp_path):
    bad = planted({5: NAN, 6: SPIKE})
    ranks(WORKER, 2, str(tmp_path), "1-fp32-none-1", bad, json.dumps({"stop": 5}), expect=AGAIN)
    saved = read_about(tmp_path / "checkpoints" / "step-00000006")
    guard = saved["position"]["extra"]["guard"]
    assert (saved["world_size"], guard["in_a_row"], guard["skipped"], len(guard["losses"])) == (2, 1, 1, 4)
    (output,) = ranks(WORKER, 1, str(tmp_path), "2-fp32-none-2", bad)
    restored = [line for line in output.splitlines() if line.startswith("restored")]
    assert restored == ["restored step-00000006", "restored step-00000004"]
    told = rows(tmp_path / "incidents-rank0.jsonl")
    assert [(row["kind"], row["step"]) for row in told] == [("bad_step", 5), ("bad_step", 6), ("went_back", 6)]
    # The limit of step 6 comes from what two ranks found in steps 1 to 4; half of the window alone would be too few.
    assert told[1]["limit"] == pytest.approx(limit(guard["losses"], GuardConfig(window=4, sigma=10)))
