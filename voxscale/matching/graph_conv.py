"""Graph convolution with a weight of its own for the node itself."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from voxscale.matching.neighbours import ends
from voxscale.models.layers import draw_truncated


class GraphConv(nn.Module):
    """`H W_root + mean of neighbours W + bias` (Morris et al. 2019, Eq. 5, with the mean in place of the sum).

    What a node is stays apart from what its neighbours are, so that near nodes
    are not smoothed into one, as they are by `GCN`.

    Args:
        inputs: Features of a node.
        outputs: Features that come out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.root = nn.Linear(inputs, outputs)
        self.linear = nn.Linear(inputs, outputs, bias=False)

    def forward(self, values: Float[Tensor, "b n f"], edges: Int64[Tensor, "b n k"]) -> Float[Tensor, "b n g"]:
        """New values of all nodes."""
        return self.root(values) + self.linear(ends(values, edges).mean(dim=2))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights: normal with the variance that keeps that of the features (LeCun); the bias is 0."""
        for layer in (self.root, self.linear):
            draw_truncated(layer.weight, generator, layer.in_features**-0.5)
        self.root.bias.zero_()
