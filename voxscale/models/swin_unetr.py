"""Swin UNETR from MONAI: a U-Net whose encoder is a Swin transformer."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from voxscale.config import config, require
from voxscale.models.interface import Backbone
from voxscale.models.layers import conv_flops, draw_truncated, initialise_layers, volume
from voxscale.models.optional import load
from voxscale.models.sizes import Dims, Level, check_outputs, check_stages, grid, strided_size

_DOWN = ((2, 2, 2),) * 5


@config
class SwinUNETRConfig:
    """Size and geometry of a Swin UNETR.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        width: Channels after the patch embedding; a multiple of 12.
        depths: Transformer blocks of each of the four stages.
        attention_heads: Of each stage.
        window: Places along each axis within which attention works.
        dims: 3 for volumes, 2 for images.
        in_channels: Image channels.
        classes: Output classes with the background; 0 is allowed without a head.
        heads: 1 with outputs at full resolution, 0 without.
        checkpoint_stages: Levels, 0 at full resolution, that are recomputed in the backward pass.
    """

    kind: Literal["swin_unetr"] = "swin_unetr"
    width: int = 48
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    attention_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    dims: Dims = 3
    in_channels: int = 1
    classes: int = 0
    heads: int = 0
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(self.width >= 12 and self.width % 12 == 0, "model.width", "a multiple of 12", self.width)
        ok = all((self.width << i) % n == 0 for i, n in enumerate(self.attention_heads))
        require(ok, "model.attention_heads", "divisors of the channels of their stages", self.attention_heads)
        require(min(self.depths) >= 1, "model.depths", "four numbers of at least 1", self.depths)
        require(self.window >= 2, "model.window", "at least 2", self.window)
        check_outputs(self.in_channels, self.classes, self.heads, 1)
        check_stages(self.checkpoint_stages, 6)


class _RealNumbers(TorchFunctionMode):
    """Inside a meta context, leave the one tensor real whose values MONAI's constructor reads."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = dict(kwargs or {})
        if func is torch.linspace:
            more["device"] = "cpu"
        return func(*args, **more)


class SwinUNETR(Backbone):
    """Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266), with MONAI's weight names.

    `features` are what the skip connections carry: the image through a residual
    block at full resolution, then the normalised outputs of patch embedding and
    Swin stages through theirs.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ("out.",)
    input_weights: ClassVar[tuple[str, ...]] = (
        "swinViT.patch_embed.proj.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    )
    decay_free: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)

    def __init__(self, config: SwinUNETRConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: See `Backbone.place`.

        Raises:
            ConfigError: If MONAI is not installed.
        """
        super().__init__()
        self.config, self.dims, self.decoder_levels = config, config.dims, 5
        channels = (config.width, *(config.width << i for i in range(5)))
        self.levels = tuple(Level(c, (1 << i,) * config.dims) for i, c in enumerate(channels))
        self.checkpoint_stages = config.checkpoint_stages
        with torch.device("meta"), _RealNumbers():
            built: Any = load("monai.networks.nets", "monai").SwinUNETR(
                in_channels=config.in_channels,
                out_channels=max(config.classes, 1),
                depths=config.depths,
                num_heads=config.attention_heads,
                window_size=config.window,
                feature_size=config.width,
                spatial_dims=config.dims,
            )
        for name, child in built.named_children():
            if name != "out" or config.heads:
                self.add_module(name, child)
        self.place(device)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`."""
        initialise_layers(self, generator)
        for name, p in self.named_parameters():
            if name.endswith(self.decay_free):
                draw_truncated(p, generator)
        for name, buffer in self.named_buffers():
            if name.endswith("relative_position_index"):
                buffer.copy_(relative_positions(self.config.window, self.dims))

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """See `strided_size`."""
        return strided_size(size, _DOWN)

    def size_rule(self) -> str:
        """See `Backbone.size_rule`."""
        return f"a multiple of {self.levels[-1].stride} voxels with more than one voxel at the deepest stage"

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Patch embedding, Swin stages, skip blocks and decoder steps by level; the head comes last."""
        swin = [(f"swinViT.layers{i}.",) for i in range(1, 5)]
        first = ("swinViT.patch_embed.", "encoder1.")
        skips = [(f"encoder{i}.",) for i in (2, 3, 4, 10)]
        decoder = [(f"decoder{i}.",) for i in range(5, 0, -1)]
        return [first, *swin, *skips, *decoder, *([self.head_prefixes] if self.config.heads else [])]

    def features(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Features of the six skip connections, full resolution first; see `Backbone.features`."""
        self.check_size(x)
        net: Any = self
        out: list[Tensor] = [self.run_stage(0, net.encoder1, x)]
        blocks = (net.encoder2, net.encoder3, net.encoder4, None, net.encoder10)
        stages = [net.swinViT.patch_embed, *(getattr(net.swinViT, f"layers{i}")[0] for i in range(1, 5))]
        for level, (stage, block) in enumerate(zip(stages, blocks, strict=True), start=1):
            x = self.run_stage(level, stage, x.contiguous())
            skip = net.swinViT.proj_out(x, True)
            out.append(skip if block is None else self.run_stage(level, block, skip))
        return out

    def up(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the five decoder steps, full resolution first; see `Backbone.up`."""
        *skips, y = features
        out: list[Tensor] = []
        for level in range(4, -1, -1):
            y = self.run_stage(level, getattr(self, f"decoder{level + 1}"), y, skips[level])
            out.append(y)
        return out[::-1]

    def forward(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Class logits at full resolution; see `Backbone.forward`."""
        features = self.decode(x)[: self.config.heads]
        return [self.get_submodule("out")(y) for y in features]

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        config, kernel = self.config, 3**self.dims
        full, width = volume(size), config.width
        total = _block_flops(config.in_channels, width, kernel, full)
        total += conv_flops(config.in_channels, width, 2**self.dims, full >> self.dims)
        for stage, depth in enumerate(config.depths):
            places = tuple(n // 2 ** (stage + 1) for n in size)
            total += depth * _swin_flops(places, width << stage, config.window)
            merged = volume(places) >> self.dims
            total += conv_flops((width << stage) << self.dims, 2 * (width << stage), 1, merged)
        for index, level in enumerate(self.levels):
            if index not in (0, 4):
                total += _block_flops(level.channels, level.channels, kernel, grid(size, level))
        return total

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        total, kernel = self.encoder_flops(size), 3**self.dims
        for level, deeper in zip(self.levels, self.levels[1:], strict=False):
            voxels = grid(size, level)
            total += conv_flops(deeper.channels, level.channels, 1, voxels)
            total += _block_flops(2 * level.channels, level.channels, kernel, voxels)
        return total + self.config.heads * conv_flops(self.config.width, self.config.classes, 1, volume(size))


def relative_positions(window: int, dims: Dims) -> Int[Tensor, "n n"]:
    """Row of the bias table for each pair of places in a window: one row per difference."""
    places = torch.cartesian_prod(*[torch.arange(window)] * dims)
    difference = places[:, None] - places[None] + window - 1
    weights = torch.tensor([(2 * window - 1) ** (dims - 1 - axis) for axis in range(dims)])
    return (difference * weights).sum(-1)


def _block_flops(before: int, after: int, kernel: int, voxels: int) -> int:
    shortcut = conv_flops(before, after, 1, voxels) if before != after else 0
    return conv_flops(before, after, kernel, voxels) + conv_flops(after, after, kernel, voxels) + shortcut


def _swin_flops(places: Sequence[int], width: int, window: int) -> int:
    """One block: attention within windows, padded where they do not fit, and a perceptron of four widths."""
    sides = [min(n, window) for n in places]
    padded = math.prod(math.ceil(n / side) * side for n, side in zip(places, sides, strict=True))
    attention = 8 * padded * width**2 + 4 * padded * math.prod(sides) * width
    return attention + 16 * math.prod(places) * width**2
