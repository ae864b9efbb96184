"""What a match is worth."""

from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.matching.problem import Problem


def score(problem: Problem, match: Int64[Tensor, "b N"]) -> Float[Tensor, " b"]:
    """Sum of the worths of matched nodes and of edges whose two ends are matched (LVM-Med, Eq. 4).

    Differentiable in the worths; the gradient is the indicator of what is matched.

    Args:
        problem: b problems.
        match: Target node of each source node, a permutation of N.
    """
    nodes = problem.vertex.gather(2, match.unsqueeze(2)).sum(dim=(1, 2))
    batch, n, k, m, width = problem.edge.shape
    begin = match[:, :n]
    real = begin < m
    at = begin.clamp(max=m - 1)
    end = match.gather(1, problem.source.flatten(1)).view(batch, n, k, 1)
    theirs = problem.target.gather(1, at.unsqueeze(2).expand(-1, -1, width)).unsqueeze(2)
    met = (theirs == end) & real.view(batch, n, 1, 1)
    index = at.view(batch, n, 1, 1, 1).expand(-1, -1, k, 1, width)
    return nodes + (problem.edge.gather(3, index).squeeze(3) * met).sum(dim=(1, 2, 3))
