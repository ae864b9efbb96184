"""Edges of a graph as lists: the nearest nodes of each node."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.errors import DataError

LEAN = 1e-4
"""Share of a distance by which a direction counts as nearer."""


@torch.no_grad()
def nearest(
    points: Float[Tensor, "b n f"],
    k: int,
    group: Int64[Tensor, "b n"] | None = None,
    taken: Int64[Tensor, "b n t"] | None = None,
) -> Int64[Tensor, "b n k"]:
    """The k nearest other nodes of each node by Euclidean distance (LVM-Med, section 3.2), nearest first.

    Args:
        points: Features, or places in mm.
        k: Edges that leave each node.
        group: If given, nodes of the same group come before all others, however far they are.
        taken: Edges that are there already and are not chosen again.

    Raises:
        DataError: If there are fewer than k nodes to choose from.
    """
    nodes = points.shape[1] if points.ndim == 3 else 0
    most = nodes - 1 - (0 if taken is None else taken.shape[2])
    if not 1 <= k <= most:
        raise DataError(f"k must be 1 to the {most} nodes that can be chosen, not {k}", "bad_graph")
    wide = points.double()  # float32 loses the differences of close nodes that lie far from the origin
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    return _nearest(distance, k, group, taken)


@torch.no_grad()
def nearest_places(
    places: Float[Tensor, "b n 3"], k: int, group: Int64[Tensor, "b n"] | None = None
) -> Int64[Tensor, "b n k"]:
    """As `nearest`, for places in mm that may lie on a grid, where many are equally near.

    Of these the one in the direction (1, 3/5, 2/7) comes first, so that edges do
    not depend on the order in which nodes stand.

    Args:
        places: (z, y, x) in mm.
        k: Edges that leave each node.
        group: As in `nearest`.

    Raises:
        DataError: As `nearest` does.
    """
    nodes = places.shape[1]
    if not 1 <= k < nodes:
        raise DataError(f"k must be 1 to the {nodes - 1} nodes that can be chosen, not {k}", "bad_graph")
    apart = places.double().unsqueeze(1) - places.double().unsqueeze(2)
    along = apart @ torch.tensor([1.0, 3 / 5, 2 / 7], dtype=torch.float64, device=places.device)
    return _nearest(apart.norm(dim=3) - LEAN * along, k, group, None)


def _nearest(distance: Tensor, k: int, group: Tensor | None, taken: Tensor | None) -> Tensor:
    if group is not None:
        other = group.unsqueeze(1) != group.unsqueeze(2)
        distance = distance + other * (1 + distance.amax(dim=(1, 2), keepdim=True))
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    if taken is not None:
        distance.scatter_(2, taken, torch.inf)
    return distance.topk(k, dim=2, largest=False).indices


def ends(values: Float[Tensor, "b n f"], edges: Int64[Tensor, "b n k"]) -> Float[Tensor, "b n k f"]:
    """The value of the node at the end of each edge."""
    flat = edges.flatten(1).unsqueeze(2).expand(-1, -1, values.shape[2])
    return values.gather(1, flat).view(*edges.shape, values.shape[2])
