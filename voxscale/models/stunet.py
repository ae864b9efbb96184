"""STU-Net: a residual U-Net of any width and depth whose weights fit every choice of strides."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.config import config, require
from voxscale.models.interface import Backbone
from voxscale.models.layers import (
    CONV,
    INSTANCE_NORM,
    axes,
    conv_flops,
    initialise_layers,
    norm_act,
)
from voxscale.models.pointwise import POINTWISE
from voxscale.models.sizes import (
    Dims,
    Stride,
    Strides5,
    check_outputs,
    check_stages,
    check_strides,
    grid,
    levels_of,
    strided_size,
)
from voxscale.models.up_conv import UP_CONV, join, pays

CHANNEL_FACTORS = (1, 2, 4, 8, 16, 16)
"""Channels of the six resolution stages as multiples of the width."""

SIZES: dict[str, tuple[int, int]] = {
    "S": (16, 1),
    "B": (32, 1),
    "L": (64, 2),
    "H": (96, 3),
    "XL": (128, 4),
    "XXL": (192, 4),
}
"""Width and depth: the published sizes of 14.6, 58.3, 440.3 and 1457.3 million weights, and of 3.4 and 7.7 billion."""


@config
class STUNetConfig:
    """Size and geometry of a STU-Net.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        width: Channels at full resolution; deeper stages have 2, 4, 8, 16 and 16 times as many.
        depth: Residual blocks per stage.
        dims: 3 for volumes, 2 for images.
        in_channels: Image channels.
        classes: Output classes with the background; 0 is allowed without heads.
        heads: Deep-supervision heads, counted from full resolution; only these are built.
        strides: (z, y, x) stride of each of the five downsampling steps. A step of (1, 1, 1)
            keeps the resolution, so a small patch can stop early without losing any weight.
        checkpoint_stages: Levels, 0 at full resolution, that are recomputed in the backward pass.
        keep_convolutions: Whether these keep what convolutions return, so that only the rest is computed again.
    """

    kind: Literal["stunet"] = "stunet"
    width: int
    depth: int
    dims: Dims = 3
    in_channels: int = 1
    classes: int = 0
    heads: int = 0
    strides: Strides5 = (
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
    )
    checkpoint_stages: tuple[int, ...] = ()
    keep_convolutions: bool = False

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        for name in ("width", "depth"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        steps = len(CHANNEL_FACTORS) - 1
        check_outputs(self.in_channels, self.classes, self.heads, steps)
        check_strides(self.strides, self.dims, steps)
        check_stages(self.checkpoint_stages, len(CHANNEL_FACTORS))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the six resolution stages, full resolution first."""
        return tuple(self.width * factor for factor in CHANNEL_FACTORS)


class ResidualBlock(nn.Module):
    """Two convolutions of 3 voxels along each axis with instance norm, added to a shortcut.

    Attributes:
        conv3: Pointwise shortcut convolution without norm; None if the shortcut is the identity.
        scale: How much the features of the level below are enlarged, in the block of a decoder step that reads
            them beside those of the encoder; else None.
    """

    def __init__(
        self,
        before: int,
        channels: int,
        stride: Stride = (1, 1, 1),
        *,
        project: bool,
        dims: Dims,
        scale: Stride | None = None,
    ) -> None:
        super().__init__()
        conv, norm, step = CONV[dims], INSTANCE_NORM[dims], axes(stride, dims)
        self.scale = None if scale is None else axes(scale, dims)
        if scale is None:
            self.conv1 = conv(before, channels, 3, stride=step, padding=1)  # pyright: ignore[reportArgumentType]
        else:
            self.conv1 = UP_CONV[dims](before, channels, 3, scale)
        self.norm1 = norm(channels, affine=True)
        self.conv2 = conv(channels, channels, 3, padding=1)
        self.norm2 = norm(channels, affine=True)
        if scale is None:
            self.conv3 = conv(before, channels, 1, stride=step) if project else None  # pyright: ignore[reportArgumentType]
        else:
            self.conv3 = UP_CONV[dims](before, channels, 1, scale)

    def forward(
        self, x: Float[Tensor, "b _ *size"], skip: Float[Tensor, "b _ *size2"] | None = None
    ) -> Float[Tensor, "b channels *size3"]:
        """Apply the block, with `scale` to features to enlarge and those beside them."""
        inputs = (x,)
        if skip is not None and self.scale is not None:
            inputs = (x, skip) if pays(x, self.scale) else (join(x, skip, self.scale),)
        y = norm_act(self.conv1(*inputs), self.norm1)
        y = self.conv2(y)
        shortcut = x if self.conv3 is None else self.conv3(*inputs)
        return norm_act(y, self.norm2, shortcut)


class Upsample(nn.Module):
    """The pointwise convolution of an upsampling; what follows enlarges (`voxscale.models.up_conv`).

    STU-Net enlarges first. A pointwise convolution commutes with copying voxels, and in this
    order it runs on an eighth of them.
    """

    def __init__(self, before: int, channels: int, dims: Dims) -> None:
        super().__init__()
        self.conv = POINTWISE[dims](before, channels)

    def forward(self, x: Float[Tensor, "b before *size"]) -> Float[Tensor, "b channels *size"]:
        """Apply the convolution."""
        return self.conv(x)


class Stage(nn.Sequential):
    """The residual blocks of a level in encoder or decoder, of which only the first may read two tensors."""

    def forward(self, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply all blocks."""
        first, *others = self
        y = first(*inputs)
        for block in others:
            y = block(y)
        return y


def _stage(
    before: int, channels: int, config: STUNetConfig, stride: Stride = (1, 1, 1), scale: Stride | None = None
) -> Stage:
    blocks = [ResidualBlock(before, channels, stride, project=True, dims=config.dims, scale=scale)]
    blocks += [ResidualBlock(channels, channels, project=False, dims=config.dims) for _ in range(config.depth - 1)]
    return Stage(*blocks)


class STUNet(Backbone):
    """STU-Net (Huang et al. 2023, arXiv 2304.06716), with the weight names of the released models.

    Six resolution stages joined by strided residual blocks, a decoder of the same
    depth, and pointwise segmentation heads. `seg_outputs.4` is the head at full
    resolution and `seg_outputs.0` the coarsest one.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ("seg_outputs.",)
    sees_parts = True
    input_weights: ClassVar[tuple[str, ...]] = (
        "conv_blocks_context.0.0.conv1.weight",
        "conv_blocks_context.0.0.conv3.weight",
    )

    def __init__(self, config: STUNetConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: See `Backbone.place`.
        """
        super().__init__()
        self.config = config
        self.dims = config.dims
        dims = config.channels
        self.levels = levels_of(dims, config.strides, config.dims)
        self.decoder_levels = len(dims) - 1
        self.checkpoint_stages = config.checkpoint_stages
        self.keep_convolutions = config.keep_convolutions
        strides: tuple[Stride, ...] = ((1, 1, 1), *config.strides)
        steps = range(len(dims) - 2, -1, -1)  # encoder stage that each decoder step returns to, deepest first
        # On meta the layers do not draw initial values of their own from the global generator.
        with torch.device("meta"):
            self.conv_blocks_context = nn.ModuleList(
                _stage(before, channels, config, stride)
                for before, channels, stride in zip((config.in_channels, *dims), dims, strides, strict=False)
            )
            self.upsample_layers = nn.ModuleList(Upsample(dims[n + 1], dims[n], config.dims) for n in steps)
            self.conv_blocks_localization = nn.ModuleList(
                _stage(2 * dims[n], dims[n], config, scale=strides[n + 1]) for n in steps
            )
            head = POINTWISE[config.dims]
            self.seg_outputs = nn.ModuleDict(
                {str(u): head(dims[n], config.classes) for u, n in enumerate(steps) if n < config.heads}
            )
        self.place(device)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`."""
        initialise_layers(self, generator)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """See `strided_size`."""
        return strided_size(size, self.config.strides)

    def size_rule(self) -> str:
        """See `Backbone.size_rule`."""
        return f"a multiple of {self.levels[-1].stride} voxels with more than one voxel at the deepest stage"

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """One layer per encoder stage and decoder step; the heads come last."""
        encoder = [(f"conv_blocks_context.{i}.",) for i in range(len(self.levels))]
        steps = range(self.decoder_levels)
        decoder = [(f"upsample_layers.{u}.", f"conv_blocks_localization.{u}.") for u in steps]
        return [*encoder, *decoder, self.head_prefixes]

    def features(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Features of the six encoder stages, full resolution first; see `Backbone.features`."""
        self.check_size(x)
        out: list[Tensor] = []
        for level, stage in enumerate(self.conv_blocks_context):
            x = self.run_stage(level, stage, x)
            out.append(x)
        return out

    def up(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the five decoder steps, full resolution first; see `Backbone.up`."""
        *skips, y = features
        out: list[Tensor] = []
        for step in range(self.decoder_levels):
            y = self.run_stage(len(skips) - 1, self._step, step, y, skips.pop())
            out.append(y)
        return out[::-1]

    def _step(self, step: int, y: Tensor, skip: Tensor) -> Tensor:
        return self.conv_blocks_localization[step](self.upsample_layers[step](y), skip)

    def forward(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Class logits of each head, full resolution first.

        Args:
            x: Images, as in `features`.

        Returns:
            As many tensors (b, classes, z, y, x) as there are heads.

        Raises:
            ConfigError: As `features` does.
        """
        last = len(self.upsample_layers) - 1
        features = self.decode(x)[: self.config.heads]
        return [self.seg_outputs[str(last - level)](y) for level, y in enumerate(features)]

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        before, total = self.config.in_channels, 0
        for level in self.levels:
            total += self._stage_flops(before, level.channels, grid(size, level))
            before = level.channels
        return total

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        total = self.encoder_flops(size)
        for index, (level, deeper) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            total += conv_flops(deeper.channels, level.channels, 1, grid(size, deeper))
            total += self._stage_flops(2 * level.channels, level.channels, grid(size, level))
            if index < self.config.heads:
                total += conv_flops(level.channels, self.config.classes, 1, grid(size, level))
        return total

    def _stage_flops(self, before: int, channels: int, voxels: int) -> int:
        kernel = 3**self.dims
        first = conv_flops(before, channels, kernel + 1, voxels)
        return first + conv_flops(channels, channels, kernel, voxels) * (2 * self.config.depth - 1)
