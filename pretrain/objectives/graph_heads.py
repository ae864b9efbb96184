"""Projector and graph layers of graph matching."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pretrain.objectives.graph_config import GraphMatchingConfig
from voxscale.matching.gcn import GCN
from voxscale.matching.graph_conv import GraphConv
from voxscale.models.layers import draw_truncated


class GraphMatchingHeads(nn.Module):
    """Projector and graph layers, shared by both views, and the price of leaving a node unmatched.

    Without a matching term there is only the projector.

    Args:
        channels: Features of the encoder.
        config: Widths and kind of layers.
    """

    def __init__(self, channels: int, config: GraphMatchingConfig) -> None:
        super().__init__()
        self.projector = nn.Linear(channels, config.width)
        kind = {"gcn": GCN, "graph_conv": GraphConv, "none": None}[config.gnn if config.matching_weight else "none"]
        made = [] if kind is None else [kind(config.width, config.width) for _ in range(config.layers)]
        self.layers = nn.ModuleList(made)
        binned = config.mode == "patch" and config.matching_weight > 0
        self.dustbin = nn.Parameter(torch.zeros(1)) if binned else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        draw_truncated(self.projector.weight, generator, self.projector.in_features**-0.5)
        self.projector.bias.zero_()
        for layer in self.layers:
            layer.initialise(generator)
        if self.dustbin is not None:
            self.dustbin.zero_()

    def forward(self, values: Float[Tensor, "b n f"], edges: Int64[Tensor, "b n k"]) -> Float[Tensor, "b n f"]:
        """Pass messages along the edges; no activation after the last layer."""
        values = values.to(self.projector.weight.dtype)
        for number, layer in enumerate(self.layers):
            values = layer(values if number == 0 else values.relu(), edges)
        return values
