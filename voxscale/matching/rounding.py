"""From a soft match to a match."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.matching.softassign import SHARE


@torch.no_grad()
def round_greedily(share: Float[Tensor, "b N N"], worth: Float[Tensor, "b N N"] | None = None) -> Int64[Tensor, "b N"]:
    """Take the greatest entry, strike its row and column, and so on: N steps for the whole batch at once.

    Args:
        share: A soft match, multiples of `voxscale.matching.softassign.SHARE`.
        worth: Decides between equal shares, such as two halves of a node that both want: the first one in the order of
            nodes would be another one in another order. float64.
    """
    batch, nodes, _ = share.shape
    left = share.clone()
    if worth is not None:
        low, high = worth.amin(dim=(1, 2), keepdim=True), worth.amax(dim=(1, 2), keepdim=True)
        left = share + SHARE / 2 * (worth - low) / (high - low).clamp(min=1e-9)
    match = torch.zeros(batch, nodes, dtype=torch.long, device=share.device)
    everywhere = torch.arange(nodes, device=share.device)
    for _ in range(nodes):
        place = left.flatten(1).argmax(dim=1, keepdim=True)
        row, column = place // nodes, place % nodes
        match.scatter_(1, row, column)
        left.masked_fill_((everywhere == row).unsqueeze(2) | (everywhere == column).unsqueeze(1), -torch.inf)
    return match
