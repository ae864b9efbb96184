"""From a soft match to a match."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@torch.no_grad()
def round_greedily(share: Float[Tensor, "b N N"]) -> Int64[Tensor, "b N"]:
    """Take the greatest entry, strike its row and column, and so on: N steps for the whole batch at once."""
    batch, nodes, _ = share.shape
    left = share.clone()
    match = torch.zeros(batch, nodes, dtype=torch.long, device=share.device)
    everywhere = torch.arange(nodes, device=share.device)
    for _ in range(nodes):
        place = left.flatten(1).argmax(dim=1, keepdim=True)
        row, column = place // nodes, place % nodes
        match.scatter_(1, row, column)
        left.masked_fill_((everywhere == row).unsqueeze(2) | (everywhere == column).unsqueeze(1), -torch.inf)
    return match
