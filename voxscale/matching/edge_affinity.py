"""How much edges of two graphs are alike, for pairs of edges only."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voxscale.matching.neighbours import ends
from voxscale.matching.vertex_affinity import cosines


def edge_affinity(
    source: Float[Tensor, "b n f"],
    target: Float[Tensor, "b m f"],
    source_edges: Int64[Tensor, "b n k"],
    target_edges: Int64[Tensor, "b m l"],
) -> Float[Tensor, "b n k m l"]:
    """`cos(u_i - u_j, u_a - u_b)` for each pair of an edge i -> j and an edge a -> b (LVM-Med, section 3.2)."""
    first = source.unsqueeze(2) - ends(source, source_edges)
    second = target.unsqueeze(2) - ends(target, target_edges)
    return _by_edge(cosines(first.flatten(1, 2), second.flatten(1, 2)), source_edges, target_edges)


def offset_affinity(
    source: Float[Tensor, "b n d"],
    target: Float[Tensor, "b m d"],
    source_edges: Int64[Tensor, "b n k"],
    target_edges: Int64[Tensor, "b m l"],
    scale_mm: float,
    source_scans: Int64[Tensor, "b n"] | None = None,
    target_scans: Int64[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n k m l"]:
    """`exp(-|d|^2 / (2 scale^2))` of how far two edges' physical offsets differ, 0 for edges between scans.

    Args:
        source: Places of nodes in mm.
        target: Places of nodes in mm.
        source_edges: The node at the end of each edge.
        target_edges: The node at the end of each edge.
        scale_mm: Difference in mm at which the affinity has fallen to 0.61.
        source_scans: Which scan each node lies in; all in one if None.
        target_scans: Which scan each node lies in; all in one if None.
    """
    first = (ends(source.float(), source_edges) - source.float().unsqueeze(2)).flatten(1, 2)
    second = (ends(target.float(), target_edges) - target.float().unsqueeze(2)).flatten(1, 2)
    apart = (first.unsqueeze(2) - second.unsqueeze(1)).square().sum(dim=3)
    alike = torch.exp(apart / (-2 * scale_mm**2))
    alike = alike * _within(source_scans, source_edges, alike).unsqueeze(2)
    alike = alike * _within(target_scans, target_edges, alike).unsqueeze(1)
    return _by_edge(alike, source_edges, target_edges)


def _within(scans: Int64[Tensor, "b n"] | None, edges: Int64[Tensor, "b n k"], like: Tensor) -> Bool[Tensor, "b e"]:
    """Whether an edge stays in one scan."""
    if scans is None:
        return torch.ones(edges.flatten(1).shape, dtype=torch.bool, device=like.device)
    return (scans.gather(1, edges.flatten(1)).view(edges.shape) == scans.unsqueeze(2)).flatten(1)


def _by_edge(
    pairs: Float[Tensor, "b e g"], source: Int64[Tensor, "b n k"], target: Int64[Tensor, "b m l"]
) -> Float[Tensor, "b n k m l"]:
    return pairs.view(*source.shape, *target.shape[1:])
