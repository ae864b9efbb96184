"""Graph convolution without a weight of its own for the node itself."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from voxscale.matching.neighbours import ends
from voxscale.models.layers import draw_truncated


class GCN(nn.Module):
    """`D^-1/2 (A + I) D^-1/2 H W` (LVM-Med, Eq. 1; Kipf and Welling 2017, Eq. 2).

    D counts the edges that leave each node, without the loop that I adds, as
    the paper writes it. With k edges from every node D is k everywhere.

    Args:
        inputs: Features of a node.
        outputs: Features that come out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)

    def forward(self, values: Float[Tensor, "b n f"], edges: Int64[Tensor, "b n k"]) -> Float[Tensor, "b n g"]:
        """New values of all nodes."""
        mixed = (values + ends(values, edges).sum(dim=2)) / edges.shape[2]
        return self.linear(mixed)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights: normal with the variance that keeps that of the features (LeCun)."""
        draw_truncated(self.linear.weight, generator, self.linear.in_features**-0.5)
