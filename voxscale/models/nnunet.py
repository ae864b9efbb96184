"""The U-Nets of nnU-Net: plain and with a residual encoder, from dynamic-network-architectures."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.config import config, require
from voxscale.models.interface import Backbone
from voxscale.models.layers import CONV, INSTANCE_NORM, axes, conv_flops, initialise_layers, volume
from voxscale.models.optional import load
from voxscale.models.sizes import (
    Dims,
    Strides5,
    check_outputs,
    check_stages,
    check_strides,
    grid,
    levels_of,
    strided_size,
)

PACKAGE = "dynamic-network-architectures"


@config
class NNUNetConfig:
    """Size and geometry of an nnU-Net.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        residual: Whether encoder stages consist of residual blocks (two convolutions each, and a stem) or of
            single convolutions.
        channels: Of the six resolution stages, full resolution first.
        blocks: Residual blocks or convolutions of each encoder stage.
        decoder_blocks: Convolutions of each decoder step.
        dims: 3 for volumes, 2 for images.
        in_channels: Image channels.
        classes: Output classes with the background; 0 is allowed without heads.
        heads: Deep-supervision heads, counted from full resolution; only these are built.
        strides: (z, y, x) stride of each of the five downsampling steps. The transposed convolutions
            have kernels of these sizes, so other strides mean other decoder weights.
        checkpoint_stages: Levels, 0 at full resolution, that are recomputed in the backward pass.
    """

    kind: Literal["nnunet"] = "nnunet"
    residual: bool
    channels: tuple[int, int, int, int, int, int]
    blocks: tuple[int, int, int, int, int, int]
    decoder_blocks: int
    dims: Dims = 3
    in_channels: int = 1
    classes: int = 0
    heads: int = 0
    strides: Strides5 = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        for name in ("channels", "blocks"):
            value = getattr(self, name)
            require(len(value) == 6 and min(value) >= 1, f"model.{name}", "six numbers of at least 1", value)
        require(self.decoder_blocks >= 1, "model.decoder_blocks", "at least 1", self.decoder_blocks)
        check_outputs(self.in_channels, self.classes, self.heads, 5)
        check_strides(self.strides, self.dims, 5)
        check_stages(self.checkpoint_stages, 6)


class NNUNet(Backbone):
    """nnU-Net's PlainConvUNet and ResidualEncoderUNet (Isensee et al. 2021 and 2024), with their weight names.

    The encoder is registered once, not again inside the decoder, and
    `decoder.seg_layers.4` is the head at full resolution.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ("decoder.seg_layers.",)
    sees_parts = True

    def __init__(self, config: NNUNetConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: See `Backbone.place`.

        Raises:
            ConfigError: If dynamic-network-architectures is not installed.
        """
        super().__init__()
        self.config, self.dims = config, config.dims
        self.levels = levels_of(config.channels, config.strides, config.dims)
        self.decoder_levels = 5
        self.checkpoint_stages = config.checkpoint_stages
        strides = [[1] * config.dims, *(list(axes(stride, config.dims)) for stride in config.strides)]
        with torch.device("meta"):
            built: Any = _architecture(config.residual)(
                config.in_channels,
                6,
                config.channels,
                CONV[config.dims],
                3,
                strides,
                config.blocks,
                max(config.classes, 1),
                config.decoder_blocks,
                conv_bias=True,
                norm_op=INSTANCE_NORM[config.dims],
                norm_op_kwargs={"eps": 1e-5, "affine": True},
                nonlin=nn.LeakyReLU,
                nonlin_kwargs={"inplace": True},
                deep_supervision=True,
            )
        self.encoder, self.decoder = built.encoder, built.decoder
        del self.decoder.encoder
        kept = {str(u): head for u, head in enumerate(self.decoder.seg_layers) if 4 - u < config.heads}
        self.decoder.seg_layers = nn.ModuleDict(kept)
        self.place(device)

    @property
    def input_weights(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight of the first convolution."""
        return (
            "encoder.stem.convs.0.conv.weight" if self.config.residual else "encoder.stages.0.0.convs.0.conv.weight",
        )

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`; the last norm of each residual block starts at zero, as in nnU-Net."""
        initialise_layers(self, generator)
        for name, p in self.named_parameters():
            if self.config.residual and ".blocks." in name and ".conv2.norm." in name:
                nn.init.zeros_(p)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """See `strided_size`."""
        return strided_size(size, self.config.strides)

    def size_rule(self) -> str:
        """See `Backbone.size_rule`."""
        return f"a multiple of {self.levels[-1].stride} voxels with more than one voxel at the deepest stage"

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """One layer per encoder stage and decoder step; the stem belongs to the first, the heads come last."""
        encoder = [(f"encoder.stages.{i}.", *(("encoder.stem.",) if i == 0 else ())) for i in range(6)]
        decoder = [(f"decoder.transpconvs.{u}.", f"decoder.stages.{u}.") for u in range(5)]
        return [*encoder, *decoder, self.head_prefixes]

    def features(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Features of the six encoder stages, full resolution first; see `Backbone.features`."""
        self.check_size(x)
        out: list[Tensor] = []
        for level in range(6):
            x = self.run_stage(level, self._encode, level, x)
            out.append(x)
        return out

    def _encode(self, level: int, x: Tensor) -> Tensor:
        if level == 0 and self.config.residual:
            x = self.encoder.stem(x)
        return self.encoder.stages[level](x)

    def up(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the five decoder steps, full resolution first; see `Backbone.up`."""
        *skips, y = features
        out: list[Tensor] = []
        for step in range(5):
            y = self.run_stage(4 - step, self._step, step, y, skips.pop())
            out.append(y)
        return out[::-1]

    def _step(self, step: int, y: Tensor, skip: Tensor) -> Tensor:
        return self.decoder.stages[step](torch.cat([self.decoder.transpconvs[step](y), skip], dim=1))

    def forward(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Class logits of each head, full resolution first; see `Backbone.forward`."""
        features = self.decode(x)[: self.config.heads]
        return [self.decoder.seg_layers[str(4 - level)](y) for level, y in enumerate(features)]

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        kernel, before = 3**self.dims, self.config.in_channels
        total = 0
        if self.config.residual:
            total = conv_flops(before, self.config.channels[0], kernel, volume(size))
            before = self.config.channels[0]
        for level, blocks in zip(self.levels, self.config.blocks, strict=True):
            after, voxels = level.channels, grid(size, level)
            convolutions = 2 * blocks if self.config.residual else blocks
            total += conv_flops(before, after, kernel, voxels) + conv_flops(after, after, kernel, voxels) * (
                convolutions - 1
            )
            if self.config.residual and before != after:
                total += conv_flops(before, after, 1, voxels)
            before = after
        return total

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        kernel, total = 3**self.dims, self.encoder_flops(size)
        for index, (level, deeper) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            after, voxels = level.channels, grid(size, level)
            # Every voxel of the finer grid is made by one kernel element.
            total += conv_flops(deeper.channels, after, 1, voxels) + conv_flops(2 * after, after, kernel, voxels)
            total += conv_flops(after, after, kernel, voxels) * (self.config.decoder_blocks - 1)
            if index < self.config.heads:
                total += conv_flops(after, self.config.classes, 1, voxels)
        return total


def _architecture(residual: bool) -> type[nn.Module]:
    module = load("dynamic_network_architectures.architectures.unet", PACKAGE)
    return module.ResidualEncoderUNet if residual else module.PlainConvUNet
