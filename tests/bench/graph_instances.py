"""Matching problems as they arise in training: near-duplicate nodes seen twice, with Gumbel noise on all worths."""

import torch
from torch import Tensor

from voxscale.matching.edge_affinity import edge_affinity
from voxscale.matching.gcn import GCN
from voxscale.matching.neighbours import nearest
from voxscale.matching.problem import Problem
from voxscale.matching.vertex_affinity import cosines
from voxscale.seed import torch_generator

FEATURES = 128
EDGES = 5
SPREAD = 0.5
"""Deviation of the nodes of a cluster around its centre, in deviations of the centres."""
REGIMES = {"B": (0.1, 0.05), "C": (0.1, 1.0)}
"""Deviation of the two views and scale of the Gumbel noise."""


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal draws."""
    return torch.randn(shape, generator=generator)


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draws of Gumbel(0, 1)."""
    return -torch.empty(shape).exponential_(generator=generator).log()


@torch.no_grad()
def instances(count: int, nodes: int, regime: str, seed: int = 0) -> Problem:
    """Problems of which the identity is the true match: n / 4 clusters, k = 5, two layers of GCN on both views.

    The worth of a pair of nodes is 0.8 of the cosine after the GCN and 0.2 of
    two local terms, of which each is the cosine before it.
    """
    generator = torch_generator(seed, "graphs", nodes, regime)
    noise, scale = REGIMES[regime]
    centres = normal((count, nodes // 4, FEATURES), generator).repeat_interleave(4, dim=1)
    truth = centres + SPREAD * normal((count, nodes, FEATURES), generator)
    views = [truth + noise * normal((count, nodes, FEATURES), generator) for _ in range(2)]
    edges = [nearest(view, EDGES) for view in views]
    layers = [GCN(FEATURES, FEATURES) for _ in range(2)]
    for layer in layers:
        layer.initialise(generator)
    source, target = (layers[1](layers[0](v, e).relu(), e) for v, e in zip(views, edges, strict=True))
    vertex = 0.8 * cosines(source, target) + 0.2 * 2 * cosines(*views)
    edge = edge_affinity(source, target, *edges)
    return Problem(
        vertex=vertex + scale * gumbel(vertex.shape, generator),
        edge=edge + scale * gumbel(edge.shape, generator),
        source=edges[0],
        target=edges[1],
    )
