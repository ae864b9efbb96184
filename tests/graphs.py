"""Random matching problems."""

import torch
from torch import Tensor

from voxscale.matching.neighbours import nearest
from voxscale.matching.problem import Problem
from voxscale.seed import torch_generator


def random_problem(batch: int, nodes: int, k: int, seed: int) -> Problem:
    """Normal worths on graphs of nearest neighbours of random points."""
    generator = torch_generator(seed, "problem")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    source, target = (nearest(normal(batch, nodes, 3), k) for _ in range(2))
    return Problem(
        vertex=normal(batch, nodes, nodes), edge=normal(batch, nodes, k, nodes, k), source=source, target=target
    )


def relabelled(problem: Problem, rows: Tensor, columns: Tensor) -> Problem:
    """The same problem, whose node i is the old node rows[i], and target node a the old one columns[a]."""
    return Problem(
        vertex=problem.vertex[:, rows][:, :, columns],
        edge=problem.edge[:, rows][:, :, :, columns],
        source=rows.argsort()[problem.source[:, rows]],
        target=columns.argsort()[problem.target[:, columns]],
    )
