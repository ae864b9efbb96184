"""Improve a match by exchanging the targets of two nodes at a time."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from voxscale.matching.problem import Problem
from voxscale.matching.softassign import one_hot_ends


@torch.no_grad()
def two_opt(problem: Problem, match: Int64[Tensor, "b N"], steps: int) -> Int64[Tensor, "b N"]:
    """Make the exchange that gains most, so many times; where none gains, the match stays.

    Args:
        problem: b problems; float32.
        match: Permutations of N.
        steps: Exchanges at most. The count is fixed: nothing is read back from the device.
    """
    nodes = match.shape[1]
    order = edge_order(problem)
    at_source = one_hot_ends(problem)[0]
    for _ in range(steps):
        gain, place = gains(problem, match, order, at_source).flatten(1).max(dim=1, keepdim=True)
        first, second = place // nodes, place % nodes
        second = torch.where(gain > 0, second, first)
        changed = match.scatter(1, first, match.gather(1, second))
        match = changed.scatter(1, second, match.gather(1, first))
    return match


def edge_order(problem: Problem) -> Int64[Tensor, "b m N"]:
    """Which edge of target node a ends at node b, or `width` if none does."""
    batch, m, width = problem.target.shape
    order = torch.full((batch, m, problem.vertex.shape[1]), width, device=problem.target.device)
    numbers = torch.arange(width, device=problem.target.device).expand(batch, m, width)
    return order.scatter(2, problem.target, numbers)


def gains(
    problem: Problem, match: Int64[Tensor, "b N"], order: Int64[Tensor, "b m N"], at_source: Float[Tensor, "b e n"]
) -> Float[Tensor, "b N N"]:
    """What each exchange of two nodes' targets would add to the worth.

    With `moved[i, a]` the worth of i at a while all others stay, an exchange of i
    and j gains moved[i, a_j] + moved[j, a_i] - moved[i, a_i] - moved[j, a_j], but for
    edges between i and j themselves: those that are matched now are taken away
    twice, those that would be are not counted. `between` mends both.
    """
    nodes = match.shape[1]
    moved = problem.vertex + _edges_of_moved(problem, match, order, at_source)
    crossed = moved.gather(2, match.unsqueeze(1).expand(-1, nodes, -1))
    stay = crossed.diagonal(dim1=1, dim2=2)
    between = F.pad(_between(problem, match, order), (0, nodes - problem.source.shape[1]) * 2)
    half = crossed - stay.unsqueeze(2) + between
    return half + half.mT


def _edges_of_moved(
    problem: Problem, match: Int64[Tensor, "b N"], order: Int64[Tensor, "b m N"], at_source: Float[Tensor, "b e n"]
) -> Float[Tensor, "b N N"]:
    """Worth of the edges that begin or end at i, if i alone moves to a."""
    batch, n, k, m, width = problem.edge.shape
    nodes = match.shape[1]
    end = match.gather(1, problem.source.flatten(1))
    which = order.gather(2, end.unsqueeze(1).expand(-1, m, -1)).mT.reshape(batch, n, k, m, 1)
    begins = F.pad(problem.edge, (0, 1)).gather(4, which).squeeze(4).sum(dim=2)
    at = match[:, :n].clamp(max=m - 1)
    kept = problem.edge.gather(3, at.view(batch, n, 1, 1, 1).expand(-1, -1, k, 1, width)).squeeze(3)
    kept = kept * (match[:, :n] < m).view(batch, n, 1, 1)
    places = problem.target.gather(1, at.unsqueeze(2).expand(-1, -1, width)).unsqueeze(2).expand(-1, -1, k, -1)
    rows = kept.new_zeros(batch, n, k, m).scatter(3, places, kept)
    ends = at_source.mT @ rows.view(batch, n * k, m)
    return F.pad(begins + ends, (0, nodes - m, 0, nodes - n))


def _between(problem: Problem, match: Int64[Tensor, "b N"], order: Int64[Tensor, "b m N"]) -> Float[Tensor, "b n n"]:
    """For each edge i -> j: its worth as it is matched now, and as it would be after the exchange."""
    batch, n, k, m, width = problem.edge.shape
    end = match.gather(1, problem.source.flatten(1)).view(batch, n, k)
    begin = match[:, :n].unsqueeze(2).expand(-1, -1, k)
    flat = F.pad(problem.edge, (0, 1)).view(batch, n, k, m * (width + 1))
    total = flat.new_zeros(batch, n, k)
    for a, b in ((begin, end), (end, begin)):
        at = a.clamp(max=m - 1)
        which = order.flatten(1).gather(1, (at * order.shape[2] + b).flatten(1)).view(batch, n, k)
        value = flat.gather(3, (at * (width + 1) + which).unsqueeze(3)).squeeze(3)
        total = total + value * (a < m)
    return total.new_zeros(batch, n, n).scatter(2, problem.source, total)
