"""Sums, rows and neighbours over ranks, and a gradient through both: python worker_samples.py FILE"""

import sys

import torch
from torch import Tensor

from voxscale import dist
from voxscale.cli import leave
from voxscale.samples import OWN, AllRanks, Samples, all_samples
from voxscale.seed import torch_generator

EACH = 2


def whole(ranks: int) -> Tensor:
    """The rows of all ranks."""
    return torch.randn(EACH * ranks, 3, generator=torch_generator(0, "rows"))


def loss_of(mine: Tensor, over: Samples) -> Tensor:
    """No mean over samples: a deviation of all, and pairs of all."""
    total, count = over.total(mine.square().sum(dim=0), mine.new_full((), len(mine)))
    rows = over.rows(mine)
    return (total / count).sqrt().sum() + (rows @ rows.T).tanh().mean()


def look(mine: Tensor, over: Samples) -> dict[str, Tensor]:
    """What becomes of a rank's rows."""
    mine = mine.clone().requires_grad_()
    loss = loss_of(mine, over)
    (gradient,) = torch.autograd.grad(loss, mine)
    sums, numbers = over.total(mine.sum(dim=0), torch.arange(3) + over.rank)
    assert not numbers.is_floating_point()
    bad = torch.tensor([1.0, torch.nan if over.rank == 1 else 1.0, torch.inf if over.rank == 2 else 1.0])
    (harmed,) = over.total(bad)
    before, marks = over.rolled(mine), over.rolled(mine[:, 0] > 0)
    assert not before.requires_grad
    found = {"loss": loss, "sums": sums, "numbers": numbers, "rows": over.rows(mine > 0), "marks": marks}
    found["harmed"], found["harmed_rows"] = harmed, over.rows(bad[None])
    return {name: value.detach() for name, value in found.items()} | {"before": before, "gradient": gradient}


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert all_samples() is OWN  # nobody to ask yet
    dist.start()
    over = all_samples()
    assert isinstance(over, AllRanks) == (dist.world_size() > 1)
    own = whole(dist.world_size())[EACH * dist.rank() :][:EACH]
    told = dist.gather(look(own, over))
    if dist.rank() == 0:
        torch.save(told, sys.argv[1])
    dist.barrier()
    dist.stop()
    leave(0)
