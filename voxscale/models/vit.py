"""A vision transformer for volumes and images: register tokens, rotary positions along each axis."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.config import config, require
from voxscale.models.interface import Backbone, Tokens
from voxscale.models.layers import CONV, axes, conv_flops, draw_truncated, initialise_layers, volume
from voxscale.models.sizes import Dims, Level, Stride, check_stages, nearest_multiple
from voxscale.models.sparse import spread, visible_places

TAPS = 4
"""Depths at which features are read, evenly spread and with the last block among them."""


@config
class ViTConfig:
    """Size and geometry of a vision transformer.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        width: Channels of a token.
        depth: Blocks; a multiple of 4.
        attention_heads: Attention heads; each has width / attention_heads channels.
        patch: (z, y, x) voxels of the patch that becomes a token.
        registers: Tokens without a place that every place can read and write (Darcet et al. 2024).
        mlp_ratio: Width of the hidden layer in widths.
        rope_base: Ratio of the longest to the shortest wavelength of the rotary positions.
        dims: 3 for volumes, 2 for images.
        in_channels: Image channels.
        checkpoint_stages: Quarters of the blocks, 0 to 3, that are recomputed in the backward pass.
    """

    kind: Literal["vit"] = "vit"
    width: int
    depth: int
    attention_heads: int
    patch: Stride = (16, 16, 16)
    registers: int = 4
    mlp_ratio: int = 4
    rope_base: float = 100.0
    dims: Dims = 3
    in_channels: int = 1
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(self.depth >= TAPS and self.depth % TAPS == 0, "model.depth", f"a multiple of {TAPS}", self.depth)
        require(self.attention_heads >= 1, "model.attention_heads", "at least 1", self.attention_heads)
        channels = self.width / self.attention_heads
        ok = channels % 2 == 0 and channels >= 2 * self.dims
        require(ok, "model.width", f"an even number, at least {2 * self.dims}, of channels for each head", self.width)
        require(min(self.patch) >= 1, "model.patch", "three numbers of at least 1", self.patch)
        flat = self.dims == 3 or self.patch[0] == 1
        require(flat, "model.patch", "1 along z for images of two dimensions", self.patch)
        require(self.registers >= 0, "model.registers", "at least 0", self.registers)
        require(self.mlp_ratio >= 1, "model.mlp_ratio", "at least 1", self.mlp_ratio)
        require(self.rope_base > 1, "model.rope_base", "above 1", self.rope_base)
        require(self.in_channels >= 1, "model.in_channels", "at least 1", self.in_channels)
        check_stages(self.checkpoint_stages, TAPS)


def rotary_angles(
    grid: Sequence[int], channels: int, base: float, device: torch.device | None = None
) -> Float[Tensor, "n pairs"]:
    """Angles by which the channel pairs of each place are turned.

    The pairs are shared out evenly among the axes; pairs that are left over are
    not turned. Along an axis pair i turns by place / base^(i / pairs) radians
    (Su et al. 2021, "RoFormer", section 3.2.2, applied to each axis).

    Args:
        grid: Places along each axis.
        channels: Of one attention head.
        base: Ratio of the longest to the shortest wavelength.
        device: Where the angles shall live.
    """
    pairs = channels // 2
    each = pairs // len(grid)
    frequencies = base ** (-torch.arange(each, device=device, dtype=torch.float32) / each)
    ranges = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
    places = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).reshape(-1, len(grid))
    angles = (places[:, :, None] * frequencies).flatten(1)
    return F.pad(angles, (0, pairs - angles.shape[1]))


def rotate(x: Float[Tensor, "b h n c"], angles: Float[Tensor, "*b n pairs"]) -> Float[Tensor, "b h n c"]:
    """Turn the channel pairs (i, i + pairs) of each token in their plane; angles are of all samples or of each."""
    angles = angles if angles.ndim == 2 else angles.unsqueeze(1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and added to its input."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.attention_heads = config.attention_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n c"], angles: Float[Tensor, "*b n pairs"]) -> Float[Tensor, "b n c"]:
        """Apply the block; an angle of 0 leaves a token without a place."""
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.attention_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(Backbone):
    """Vision transformer (Dosovitskiy et al. 2021) with registers and rotary positions, so any grid of patches fits."""

    input_weights: ClassVar[tuple[str, ...]] = ("patch_embed.weight",)
    decay_free: ClassVar[tuple[str, ...]] = ("registers",)
    sees_parts = True

    def __init__(self, config: ViTConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: See `Backbone.place`.
        """
        super().__init__()
        self.config, self.dims = config, config.dims
        patch = axes(config.patch, config.dims)
        self.levels = (Level(config.width, patch),) * TAPS
        self.decoder_levels = 0
        self.checkpoint_stages = config.checkpoint_stages
        with torch.device("meta"):
            self.patch_embed = CONV[config.dims](config.in_channels, config.width, patch, patch)  # pyright: ignore[reportArgumentType]
            self.registers = nn.Parameter(torch.empty(1, config.registers, config.width))
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
            self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.place(device)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`."""
        initialise_layers(self, generator, he=False)
        draw_truncated(self.registers, generator)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The nearest multiple of the patch."""
        return nearest_multiple(size, self.levels[0].stride)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The patch embedding, each block, the last norm."""
        blocks = [(f"blocks.{i}.",) for i in range(self.config.depth)]
        return [("patch_embed.", "registers"), *blocks, ("norm.",)]

    def _taps(
        self, x: Float[Tensor, "b c *size"], chosen: Int64[Tensor, "b n"] | None = None
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """All tokens after each quarter of the blocks, or those of chosen places, and the grid of places."""
        self.check_size(x)
        y = self.patch_embed(x)
        grid = tuple(y.shape[2:])
        config, count = self.config, self.config.registers
        angles = rotary_angles(grid, config.width // config.attention_heads, config.rope_base, y.device)
        y = y.flatten(2).transpose(1, 2)
        if chosen is not None:
            angles = angles[chosen]
            y = y.gather(1, chosen.unsqueeze(2).expand(-1, -1, y.shape[2]))
        angles = F.pad(angles, (0, 0, count, 0))  # registers have no place
        y = torch.cat([self.registers.expand(len(y), -1, -1), y], dim=1)
        taps: list[Tensor] = []
        for quarter in range(TAPS):
            y = self.run_stage(quarter, self._quarter, quarter, y, angles)
            taps.append(y)
        return taps, grid

    def _quarter(self, quarter: int, x: Tensor, angles: Tensor) -> Tensor:
        each = self.config.depth // TAPS
        for block in list(self.blocks)[quarter * each : (quarter + 1) * each]:
            x = block(x, angles)
        return x

    def features(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Features after each quarter of the blocks, all at the resolution of the patches; see `Backbone.features`."""
        taps, grid = self._taps(x)
        placed = [self.norm(tap)[:, self.config.registers :].transpose(1, 2) for tap in taps]
        return [y.reshape(len(x), self.config.width, *grid) for y in placed]

    def visible_features(self, x: Float[Tensor, "b c *size"], visible: Bool[Tensor, "b ..."]) -> list[Tensor]:
        """Features of the visible tokens, which alone pass through the blocks; see `Backbone.visible_features`.

        He et al. 2022 (MAE). Layer norms work token by token.
        """
        grid = tuple(n // step for n, step in zip(x.shape[2:], self.levels[0].stride, strict=True))
        chosen = visible_places(spread(visible, grid), visible)
        taps, _ = self._taps(x, chosen)
        places = chosen.unsqueeze(1).expand(-1, self.config.width, -1)
        placed = [self.norm(tap)[:, self.config.registers :].transpose(1, 2) for tap in taps]
        empty = placed[0].new_zeros(len(x), self.config.width, math.prod(grid))
        return [empty.scatter(2, places, y).view(len(x), -1, *grid) for y in placed]

    def tokens(self, x: Float[Tensor, "b c *size"]) -> Tokens:
        """Registers and patch tokens of the last block; see `Backbone.tokens`."""
        taps, grid = self._taps(x)
        return Tokens(self.norm(taps[-1]), self.config.registers, grid)

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        patch = volume(self.levels[0].stride)
        places = math.prod(size) // patch
        embed = conv_flops(self.config.in_channels, self.config.width, patch, places)
        return embed + transformer_flops(
            places + self.config.registers, self.config.width, self.config.depth, self.config.mlp_ratio
        )

    def visible_flops(self, size: Sequence[int], share: float) -> int:
        """See `Backbone.visible_flops`; all patches are embedded."""
        config, places = self.config, math.prod(size) // volume(self.levels[0].stride)
        embed = conv_flops(config.in_channels, config.width, volume(self.levels[0].stride), places)
        kept = round(share * places) + config.registers
        return embed + transformer_flops(kept, config.width, config.depth, config.mlp_ratio)

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        return self.encoder_flops(size)


def transformer_flops(tokens: int, width: int, depth: int, mlp_ratio: int) -> int:
    """Operations of transformer blocks: four projections, a perceptron, logits and weighted sums."""
    linear = 2 * tokens * width**2 * (4 + 2 * mlp_ratio)
    return depth * (linear + 4 * tokens**2 * width)
