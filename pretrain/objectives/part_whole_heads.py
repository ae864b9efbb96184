"""Heads of the part-whole objective."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.direction import direction
from voxscale.models.layers import draw_truncated


class Prototypes(nn.Module):
    """Cosines with learnt directions: a linear layer with weight norm whose lengths are fixed at 1."""

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, features))

    def forward(self, x: Float[Tensor, "b f"], moves: bool) -> Float[Tensor, "b k"]:
        """Compare.

        Args:
            x: Features.
            moves: Whether the directions learn.
        """
        # Not without gradient, as sharded optimizers expect one of every weight.
        weight = self.weight if moves else self.weight.detach() + 0 * self.weight
        return F.linear(direction(x, 1), F.normalize(weight, dim=1))


class DinoHead(nn.Module):
    """Three layers, then prototypes (Caron et al. 2021, DINO)."""

    def __init__(self, features: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = mlp(features, hidden, hidden, bottleneck)
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, x: Float[Tensor, "b f"], moves: bool = True) -> Float[Tensor, "b k"]:
        """Logits in -1..1, before any temperature."""
        x = x.to(self.prototypes.weight.dtype)
        return self.prototypes(self.layers(x), moves)


class Composer(nn.Module):
    """From the parts' embeddings, in the order of slots, to the whole's."""

    def __init__(self, features: int, parts: int) -> None:
        super().__init__()
        self.layers = mlp(parts * features, features, features)

    def forward(self, parts: Float[Tensor, "b p f"]) -> Float[Tensor, "b f"]:
        """Predict the whole."""
        return self.layers(parts.flatten(1).to(_dtype(self)))


class Decomposer(nn.Module):
    """From the whole's embedding to those of its parts."""

    def __init__(self, features: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.layers = mlp(features, features, parts * features)

    def forward(self, whole: Float[Tensor, "b f"]) -> Float[Tensor, "b p f"]:
        """Predict the parts."""
        return self.layers(whole.to(_dtype(self))).unflatten(1, (self.parts, -1))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def initialise_heads(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights so that outputs are about as large as inputs."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            draw_truncated(part.weight, generator, (2 / part.in_features) ** 0.5)
            part.bias.zero_()
        elif isinstance(part, Prototypes):
            draw_truncated(part.weight, generator, 1.0)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
