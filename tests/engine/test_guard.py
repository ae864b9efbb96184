"""Bad steps: limits by hand, and planted ones with real DeepSpeed at every stage."""

import json
import math
from pathlib import Path

import pytest

from voxscale.engine.config import GuardConfig
from voxscale.engine.guard import limit

WORKER = Path(__file__).parent / "worker_guard.py"
CASES = [
    "0-fp32-none-1",
    "1-fp32-none-1",
    "2-fp32-none-2",
    "3-fp32-none-2",
    "1-bf16-none-2",
    "2-bf16-none-1",
    "3-bf16-none-1",
    "2-fp32-optimizer-1",
    "3-fp32-all-1",
    "1-bf16-optimizer-2",
    "2-bf16-optimizer-1",
    "3-bf16-all-1",
]


def test_limit_is_median_plus_sigma_robust_deviations():
    config = GuardConfig(window=4, sigma=2)
    # Median 4; distances 2, 1, 1, 3 have the median 1.5.
    assert limit([2.0, 3.0, 5.0, 7.0], config) == pytest.approx(4 + 2 * 1.4826 * 1.5)
    assert limit([4.0, 4.0, 4.0], config) == pytest.approx(4 + 2 * 0.4)  # even values keep a tenth as spread
    assert limit([-4.0, -4.0], config) == pytest.approx(-4 + 2 * 0.4)


def test_nothing_explodes_while_there_are_few_values_or_sigma_is_0():
    assert limit([1.0], GuardConfig(window=4)) == math.inf
    assert limit([1.0] * 9, GuardConfig(window=4, sigma=0)) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_bad_steps_change_nothing_on_any_rank_at_any_stage(ranks, tmp_path, world):
    outputs = ranks(WORKER, world, str(tmp_path), "tiny", ",".join(CASES))
    for output in outputs:
        seen = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
        assert [row["case"] for row in seen] == CASES
        for row in seen:
            good = [step["good"] for step in row["rows"]]
            assert good == [True] * 4 + [False, True, False, True, True], row["case"]
            for step in row["rows"]:
                assert step["same"] is not step["good"], row["case"]
                assert step["counted"] == step["good"], row["case"]
                assert step["finite"], row["case"]
    for case in CASES:
        rows = [json.loads(line) for line in (tmp_path / case / "incidents-rank0.jsonl").read_text().splitlines()]
        assert [(row["kind"], row["step"]) for row in rows] == [("bad_step", 4), ("bad_step", 6)]
        hit = [part for rank in rows[0]["ranks"] for part in rank if part["loss"] == "nan"]
        assert len(hit) == 1
        assert 33 in hit[0]["samples"]
        assert sorted(i for rank in rows[1]["ranks"] for part in rank for i in part["samples"]) == list(range(48, 56))


@pytest.mark.slow
def test_statistics_of_norms_forget_a_bad_step_on_the_ranks_with_good_samples_too(ranks, tmp_path):
    cases = ["1-fp32-none-2", "2-bf16-none-1", "3-fp32-none-1"]
    outputs = ranks(WORKER, 2, str(tmp_path), "normed", ",".join(cases))
    for output in outputs:  # the NaN is the first rank's, and the other's statistics alone would not show it
        seen = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
        assert [row["case"] for row in seen] == cases
        for row in seen:
            bad = [not step["good"] for step in row["rows"]]
            assert bad == [False] * 4 + [True, False, True, False, False], row["case"]
            for step in row["rows"]:
                assert step["unseen"] == [not step["good"]] * 3, row["case"]
                assert step["finite"], row["case"]
