"""Runs killed with SIGKILL at chosen and random moments, started again: the same bits as undisturbed ones."""

import pytest
from forked_ranks import POINTS, kill_and_go_on, launch, losses

from voxscale.engine.checkpoint import read_about


def test_five_killed_runs_of_one_rank_go_on_with_the_same_bits(tmp_path):
    """In a forward pass, half a file, between files, after the manifest, before the name."""
    whole = tmp_path / "whole"
    assert launch(whole, 1, "2", {}), (whole / "out-0.txt").read_text()
    rows = [kill_and_go_on(whole, tmp_path / f"run-{n}", "2", n, world=1) for n in (0, 3, 4, 7, 8)]
    assert all(row["killed"] and row["same"] for row in rows), rows
    assert len({row["point"] for row in rows}) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "numbers"), [("1", range(17)), ("2", range(17, 34)), ("3", range(34, 50))])
def test_fifty_killed_runs_of_two_ranks_go_on_with_the_same_bits(tmp_path, stage, numbers):
    """At every point in turn, at its first or a later time, and at random moments."""
    whole = tmp_path / "whole"
    assert launch(whole, 2, stage, {}), (whole / "out-0.txt").read_text()
    rows = [kill_and_go_on(whole, tmp_path / f"run-{n}", stage, n) for n in numbers]
    assert all(row["same"] for row in rows), rows
    # A kill from outside may come after the end.
    assert all(row["killed"] for row in rows if row["point"] != "time"), rows
    assert {row["point"] for row in rows} == {*POINTS, "time"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starts", "batch"),
    [
        ([(1, "0", 1), (2, "1", 1), (4, "3", 1), (2, "2", 0)], 4),
        ([(1, "1", 1), (2, "2", 1), (3, "3", 1), (1, "1", 0)], 6),
    ],
    ids=["1-2-4-2", "1-2-3-1"],
)
def test_other_numbers_of_ranks_follow_one_another_at_other_stages(tmp_path, starts, batch):
    whole, run, steps = tmp_path / "whole", tmp_path / "run", 12
    assert launch(whole, 1, "1", {}, steps=steps, batch=batch)
    for world, stage, count in starts:
        ended = launch(run, world, stage, {0: ("renamed", count)} if count else {}, steps=steps, batch=batch)
        assert ended == (count == 0), (run / "out-0.txt").read_text()
        about = read_about(max((run / "checkpoints").glob("step-*")))
        assert (about["world_size"], about["zero_stage"]) == (world, int(stage))
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)  # sums over a batch are split differently
