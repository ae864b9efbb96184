"""Small decoders for features of visible parts: mask tokens, a narrow pyramid, a few transformer blocks."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.models.interface import Backbone
from voxscale.models.layers import SLOPE, draw_truncated, initialise_layers
from voxscale.models.pointwise import Pointwise3d
from voxscale.models.sizes import Dims, Level
from voxscale.models.sparse import spread
from voxscale.models.vit import Block, ViTConfig, rotary_angles


class MaskTokens(nn.Module):
    """Put a learnt vector, one for each level, into the hidden places of features (SparK; MAE).

    Args:
        channels: Of each level.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for level, count in enumerate(channels):
            self.register_parameter(f"token{level}", nn.Parameter(torch.zeros(count)))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the vectors."""
        for p in self.parameters():
            draw_truncated(p, generator)

    def forward(self, features: Sequence[Tensor], visible: Bool[Tensor, "b ..."]) -> list[Tensor]:
        """Fill (b, channels, ...) features of each level."""
        out: list[Tensor] = []
        for level, values in enumerate(features):
            token = self.get_parameter(f"token{level}").to(values.dtype)
            shown = spread(visible, values.shape[2:]).unsqueeze(1)
            out.append(torch.where(shown, values, token.view(1, -1, *(1,) * (values.ndim - 2))))
        return out


class PyramidDecoder(nn.Module):
    """Pointwise convolutions of all levels to one width, enlarged and added up from the deepest on.

    Args:
        levels: Of the encoder.
        width: Channels.
        dims: Of the images; features are (b, c, z, y, x) in both cases.
    """

    def __init__(self, levels: Sequence[Level], width: int, dims: Dims) -> None:
        super().__init__()
        kernel = (3 if dims == 3 else 1, 3, 3)
        padding = tuple(n // 2 for n in kernel)
        self.fill = MaskTokens([level.channels for level in levels])
        self.sides = nn.ModuleList(Pointwise3d(level.channels, width) for level in levels)
        self.merge = nn.ModuleList(nn.Conv3d(width, width, kernel, padding=padding) for _ in levels)  # pyright: ignore[reportArgumentType]
        self.norms = nn.ModuleList(nn.InstanceNorm3d(width, affine=True) for _ in levels)
        self.cell = cell(levels[0])
        self.head = Pointwise3d(width, math.prod(self.cell))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights; those of the head so small that the first guess is near 0."""
        initialise_layers(self, generator)
        initialise_layers(self.head, generator, he=False)
        self.fill.initialise(generator)

    def forward(self, features: Sequence[Tensor], visible: Bool[Tensor, "b z y x"]) -> Float[Tensor, "b 1 z y x"]:
        """Voxels made of features of visible parts."""
        filled = self.fill(features, visible)
        y: Tensor | None = None
        for level in range(len(filled) - 1, -1, -1):
            side = self.sides[level](filled[level])
            joined = side if y is None else side + F.interpolate(y, size=side.shape[2:], mode="nearest")
            y = F.leaky_relu(self.norms[level](self.merge[level](joined)), SLOPE)
        return unfold(self.head(y), self.cell)


class TokenDecoder(nn.Module):
    """Transformer blocks over all tokens, visible or not, and a linear map to the voxels of each (MAE).

    Args:
        level: Of the encoder's last features.
        width: Channels of a token.
        depth: Blocks.
        heads: Attention heads.
        dims: Of the images.
    """

    def __init__(self, level: Level, width: int, depth: int, heads: int, dims: Dims) -> None:
        super().__init__()
        self.config = ViTConfig(width=width, depth=4, attention_heads=heads, dims=dims, patch=(1, 1, 1))
        self.fill = MaskTokens([width])
        self.project = Pointwise3d(level.channels, width)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.cell = cell(level)
        self.head = Pointwise3d(width, math.prod(self.cell))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        initialise_layers(self, generator, he=False)
        self.fill.initialise(generator)

    def forward(self, features: Sequence[Tensor], visible: Bool[Tensor, "b z y x"]) -> Float[Tensor, "b 1 z y x"]:
        """Voxels made of features of visible parts, of which the last ones are read."""
        (y,) = self.fill([self.project(features[-1])], visible)
        config, grid = self.config, y.shape[2:]
        places = grid if config.dims == 3 else grid[1:]
        angles = rotary_angles(places, config.width // config.attention_heads, config.rope_base, y.device)
        tokens = y.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, angles)
        return unfold(self.head(self.norm(tokens).transpose(1, 2).unflatten(2, grid)), self.cell)


def cell(level: Level) -> tuple[int, int, int]:
    """Voxels along z, y, x of one of a level's places."""
    z, y, x = (1, *level.stride)[-3:]
    return z, y, x


def unfold(values: Float[Tensor, "b c z y x"], block: Sequence[int]) -> Float[Tensor, "b 1 z2 y2 x2"]:
    """Lay out the channels of each place as its voxels."""
    z, y, x = values.shape[2:]
    a, b, c = block
    parts = values.view(len(values), a, b, c, z, y, x).permute(0, 4, 1, 5, 2, 6, 3)
    return parts.reshape(len(values), 1, z * a, y * b, x * c)


def light_decoder(backbone: Backbone, width: int, depth: int, heads: int) -> PyramidDecoder | TokenDecoder:
    """The kind that fits the backbone: its features are of one resolution, or of several."""
    levels = backbone.levels
    if levels[0].stride == levels[-1].stride:
        return TokenDecoder(levels[-1], width, depth, heads, backbone.dims)
    return PyramidDecoder(levels, width, backbone.dims)
