"""Nodes may stay unmatched: spare nodes on both sides, at a price."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from voxscale.errors import DataError
from voxscale.matching.problem import Problem

UNMATCHED = -1
"""Target of a source node that has none."""


def with_dustbins(problem: Problem, source: Float[Tensor, "b n"], target: Float[Tensor, "b m"]) -> Problem:
    """Append a spare target for each source node and the other way round.

    The best permutation of the n + m nodes is the best match of any number of
    nodes. Two spare nodes are worth 0 to each other; spare nodes have no edges.

    Args:
        problem: Problems of which `vertex` has n rows and n columns, all of them with edges.
        source: What leaving each source node unmatched is worth.
        target: What leaving each target node unmatched is worth.

    Raises:
        DataError: If the shapes do not belong together.
    """
    wanted = tuple(problem.vertex.shape[:2])
    if tuple(source.shape) != wanted or tuple(target.shape) != wanted:
        raise DataError(f"dustbins must be {wanted}, not {tuple(source.shape)} and {tuple(target.shape)}", "bad_graph")
    nodes = wanted[1]
    to_bin = source.unsqueeze(2).expand(-1, -1, nodes)
    from_bin = target.unsqueeze(1).expand(-1, nodes, -1)
    upper = torch.cat([problem.vertex, to_bin], dim=2)
    return problem.with_values(torch.cat([upper, F.pad(from_bin, (0, nodes))], dim=1), problem.edge)


@torch.no_grad()
def complete(match: Int64[Tensor, "b n"]) -> Int64[Tensor, "b 2n"]:
    """A partial match of n and n nodes as a permutation of all 2n, spare nodes taken in their order.

    Args:
        match: Target of each source node, all different, or `UNMATCHED`.
    """
    nodes = match.shape[1]
    # Targets in the order: used ones, unused ones, spare ones. Sources without a target take spare ones.
    bare = match == UNMATCHED
    spare = nodes + bare.long().cumsum(dim=1) - 1
    upper = torch.where(bare, spare, match)
    used = torch.zeros(len(match), 2 * nodes, dtype=torch.long, device=match.device).scatter(1, upper, 1)
    return torch.cat([upper, used.argsort(dim=1, stable=True)[:, :nodes]], dim=1)


@torch.no_grad()
def partial(match: Int64[Tensor, "b 2n"]) -> Int64[Tensor, "b n"]:
    """The partial match of a permutation made with `complete` or found for `with_dustbins`."""
    nodes = match.shape[1] // 2
    real = match[:, :nodes]
    return real.masked_fill(real >= nodes, UNMATCHED)
