"""The best match of small graphs, found by trying all."""

from itertools import permutations

import torch
from jaxtyping import Int64
from torch import Tensor

from voxscale.errors import DataError
from voxscale.matching.problem import Problem
from voxscale.matching.score import score

MOST = 7
"""Nodes up to which all permutations are tried: 5,040."""


@torch.no_grad()
def solve_exactly(problem: Problem) -> Int64[Tensor, "b N"]:
    """The best match of each problem; of equally good ones the first in the order of the alphabet.

    Raises:
        DataError: If there are more than `MOST` nodes.
    """
    batch, nodes, _ = problem.vertex.shape
    if nodes > MOST:
        raise DataError(f"problem.vertex must have up to {MOST} nodes to try all matches, not {nodes}", "bad_graph")
    every = torch.tensor(list(permutations(range(nodes))), device=problem.vertex.device)
    worth = torch.stack([score(_one(problem, row, len(every)), every) for row in range(batch)])
    return every[worth.argmax(dim=1)]


def _one(problem: Problem, row: int, times: int) -> Problem:
    """One problem, as often as there are matches to try, without copies."""

    def spread(part: Tensor) -> Tensor:
        return part[row].expand(times, *part.shape[1:])

    return Problem(
        vertex=spread(problem.vertex),
        edge=spread(problem.edge),
        source=spread(problem.source),
        target=spread(problem.target),
    )
