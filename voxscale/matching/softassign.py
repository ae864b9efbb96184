"""Graduated assignment: a soft match that is made harder step by step."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from voxscale.matching.problem import Problem

SHARE = 2.0**-24
"""Shares are multiples of it.

A hard soft match can swing between two matches, and then the last digits decide.
With worths that are multiples of `WORTH` all sums of the gradient are exact in
float64, and equal in whatever order nodes stand; what rounding Sinkhorn's sums
leave is taken away here.
"""

WORTH = 2.0**-20
"""Worths are rounded to multiples of it before they are solved; below 16 float32 has no finer steps throughout."""


def softassign(problem: Problem, steps: int, rounds: int, beta: tuple[float, float]) -> Float[Tensor, "b N N"]:
    """A doubly stochastic matrix that is close to a good match (Gold and Rangarajan, PAMI 18, 1996, section 3).

    Starting from equal shares, the gradient of the worth at the last matrix is
    multiplied by beta, which grows geometrically, and normalised by rows and
    columns in turn (Sinkhorn), as logarithms. No random draw, no early stop.

    Args:
        problem: b problems; in float64, with worths that are multiples of `WORTH`, the answer follows the nodes.
        steps: Values of beta.
        rounds: Normalisations of rows and of columns at each step.
        beta: First and last value.
    """
    nodes = problem.vertex.shape[1]
    ends = one_hot_ends(problem)
    share = torch.full_like(problem.vertex, 1 / nodes)
    for step in range(steps):
        hardness = beta[0] * (beta[1] / beta[0]) ** (step / max(steps - 1, 1))
        logs = hardness * gradient(problem, share, ends)
        for _ in range(rounds):
            logs = logs - logs.logsumexp(dim=2, keepdim=True)
            logs = logs - logs.logsumexp(dim=1, keepdim=True)
        share = torch.round(logs.exp() / SHARE) * SHARE
    return share


def one_hot_ends(problem: Problem) -> tuple[Float[Tensor, "b e n"], Float[Tensor, "b g m"]]:
    """Which node each edge ends at, as rows of one 1, for source and target."""
    n, m = problem.source.shape[1], problem.target.shape[1]
    kind = problem.vertex.dtype
    return F.one_hot(problem.source.flatten(1), n).to(kind), F.one_hot(problem.target.flatten(1), m).to(kind)


def gradient(
    problem: Problem, share: Float[Tensor, "b N N"], ends: tuple[Float[Tensor, "b e n"], Float[Tensor, "b g m"]]
) -> Float[Tensor, "b N N"]:
    """Gradient of the worth with respect to the shares.

    Edges are spread and gathered by products with `ends`: unlike a scatter,
    they give the same bits in every run on a GPU.
    """
    batch, n, k, m, width = problem.edge.shape
    real = share[:, :n, :m]
    at_source, at_target = ends
    begins = real.view(batch, n, 1, m, 1) * problem.edge
    from_ends = at_source.mT @ begins.view(batch, n * k, m * width) @ at_target
    both_end = (at_source @ real @ at_target.mT).view(problem.edge.shape)
    from_begins = (both_end * problem.edge).sum(dim=(2, 4))
    spare = problem.vertex.shape[1]
    return problem.vertex + F.pad(from_ends + from_begins, (0, spare - m, 0, spare - n))
