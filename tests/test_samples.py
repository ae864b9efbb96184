"""Losses over the samples of several ranks: values of all, gradients whose mean over ranks is that of one."""

from pathlib import Path

import torch
import worker_samples
from forked_ranks import together

WORKER = Path(worker_samples.__file__)
RANKS = 3


def test_three_ranks_share_rows_in_their_order_and_gradients_as_one_rank_has_them(tmp_path: Path) -> None:
    together(WORKER, RANKS, [str(tmp_path / "told.pt")], tmp_path / "out")
    told = torch.load(tmp_path / "told.pt", weights_only=True)
    every = worker_samples.whole(RANKS)
    want = worker_samples.look(every, worker_samples.OWN)
    assert len(told) == RANKS
    for rank in told:
        for name in ("loss", "sums", "rows"):
            torch.testing.assert_close(rank[name], want[name])
        assert rank["numbers"].tolist() == [3, 6, 9]
        assert rank["rows"].dtype == rank["marks"].dtype == torch.bool
    # What is not finite is seen by the rank that has it alone.
    harmed = [[3.0, 2.0, 2.0], [3.0, torch.nan, 2.0], [3.0, 2.0, torch.inf]]
    torch.testing.assert_close(torch.stack([rank["harmed"] for rank in told]), torch.tensor(harmed), equal_nan=True)
    rows = torch.ones(RANKS, RANKS, 3)
    rows[:, 1, 1], rows[:, 2, 2] = 0.0, 0.0
    rows[1, 1, 1], rows[2, 2, 2] = torch.nan, torch.inf
    torch.testing.assert_close(torch.stack([rank["harmed_rows"] for rank in told]), rows, equal_nan=True)
    # By hand: each row's place is taken by the one before it.
    before = torch.cat([rank["before"] for rank in told])
    assert torch.equal(before, torch.stack([every[row - 1] for row in range(len(every))]))
    assert torch.equal(torch.cat([rank["marks"] for rank in told]), before[:, 0] > 0)
    # An engine takes the mean over ranks of what each finds for weights that all have in common.
    gradient = torch.cat([rank["gradient"] for rank in told]) / RANKS
    torch.testing.assert_close(gradient, want["gradient"])
    assert want["gradient"].norm() > 0.1


def test_one_rank_asks_nobody(tmp_path: Path) -> None:
    together(WORKER, 1, [str(tmp_path / "told.pt")], tmp_path / "out")
    (told,) = torch.load(tmp_path / "told.pt", weights_only=True)
    want = worker_samples.look(worker_samples.whole(1), worker_samples.OWN)
    assert all(torch.equal(told[name], want[name]) for name in want)
