"""FMU-Net: the residual U-Net of MIS-FM, with flat kernels at the first levels for anisotropic scans."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.config import config, require
from voxscale.models.interface import Backbone
from voxscale.models.layers import SLOPE, conv_flops, floats, initialise_layers
from voxscale.models.sizes import Stride, check_outputs, check_stages, grid, levels_of, strided_size

FLAT, CUBE = (1, 3, 3), (3, 3, 3)
_LEVELS = 5


@config
class FMUNetConfig:
    """Size and geometry of an FMU-Net.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        channels: Of the five levels, full resolution first.
        depth: Residual convolutions per level, in encoder and decoder.
        flat_levels: Levels from full resolution on, 0 to 2, with kernels of (1, 3, 3) and strides of (1, 2, 2);
            what MIS-FM calls resolution mode.
        dropout: Share of dropped activations in the three deepest levels.
        in_channels: Image channels.
        classes: Output classes with the background; 0 is allowed without heads.
        heads: Deep-supervision heads, counted from full resolution; only these are built.
        checkpoint_stages: Levels, 0 at full resolution, that are recomputed in the backward pass.
    """

    kind: Literal["fmunet"] = "fmunet"
    channels: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    depth: int = 2
    flat_levels: int = 0
    dropout: float = 0.2
    in_channels: int = 1
    classes: int = 0
    heads: int = 0
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(min(self.channels) >= 1, "model.channels", "five numbers of at least 1", self.channels)
        require(self.depth >= 1, "model.depth", "at least 1", self.depth)
        require(0 <= self.flat_levels <= 2, "model.flat_levels", "0 to 2", self.flat_levels)
        require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        check_outputs(self.in_channels, self.classes, self.heads, _LEVELS - 1)
        check_stages(self.checkpoint_stages, _LEVELS)

    @property
    def strides(self) -> tuple[Stride, ...]:
        """(z, y, x) stride of each of the four downsampling steps."""
        return ((1, 2, 2),) * self.flat_levels + ((2, 2, 2),) * (_LEVELS - 1 - self.flat_levels)

    def kernel(self, level: int) -> Stride:
        """(z, y, x) size of the convolutions of a level."""
        return FLAT if level < self.flat_levels else CUBE


def _convolution(
    before: int, channels: int, kernel: Stride, stride: Stride = (1, 1, 1), dropout: float | None = None
) -> nn.Sequential:
    """Norm and activation come before the convolution; dropout, if any, between them and it."""
    drop = [] if dropout is None else [nn.Dropout(dropout)]
    padding = tuple(n // 2 for n in kernel)
    conv = nn.Conv3d(before, channels, kernel, stride, padding)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(nn.InstanceNorm3d(before, affine=True), nn.LeakyReLU(SLOPE), *drop, conv)


class Residuals(nn.Module):
    """Convolutions that are each added to their input."""

    def __init__(self, channels: int, kernel: Stride, dropout: float, depth: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(_convolution(channels, channels, kernel, dropout=dropout) for _ in range(depth))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Apply them in turn."""
        for conv in self.conv_list:
            x = x + conv(x)
        return x


class Down(nn.Module):
    """A strided convolution."""

    def __init__(self, before: int, channels: int, kernel: Stride, stride: Stride) -> None:
        super().__init__()
        self.down = _convolution(before, channels, kernel, stride)

    def forward(self, x: Float[Tensor, "b before z y x"]) -> Float[Tensor, "b channels z2 y2 x2"]:
        """Apply it."""
        return self.down(x)


class UpJoin(nn.Module):
    """A pointwise convolution, trilinear enlargement, and a convolution over the joined skip connection."""

    def __init__(self, deeper: int, channels: int, kernel: Stride, scale: Stride) -> None:
        super().__init__()
        self.up = _convolution(deeper, channels, (1, 1, 1))
        self.up.append(nn.Upsample(scale_factor=floats(scale), mode="trilinear", align_corners=True))
        self.conv = _convolution(2 * channels, channels, kernel)

    def forward(
        self, x: Float[Tensor, "b deeper z y x"], skip: Float[Tensor, "b channels z2 y2 x2"]
    ) -> Float[Tensor, "b channels z2 y2 x2"]:
        """Apply it."""
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class FMUNet(Backbone):
    """FMU-Net (Wang et al. 2023, MIS-FM, arXiv 2306.16925), with the weight names of PyMIC's FMUNetV3."""

    head_prefixes: ClassVar[tuple[str, ...]] = ("out_layers.",)
    sees_parts = True
    input_weights: ClassVar[tuple[str, ...]] = ("project.weight",)

    def __init__(self, config: FMUNetConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: See `Backbone.place`.
        """
        super().__init__()
        self.config, self.dims, self.decoder_levels = config, 3, _LEVELS - 1
        self.levels = levels_of(config.channels, config.strides, 3)
        self.checkpoint_stages = config.checkpoint_stages
        dims, strides, kernel = config.channels, config.strides, config.kernel
        with torch.device("meta"):
            padding = tuple(n // 2 for n in kernel(0))
            self.project = nn.Conv3d(config.in_channels, dims[0], kernel(0), padding=padding)  # pyright: ignore[reportArgumentType]
            self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
            for n in range(_LEVELS):
                dropout = config.dropout if n >= 2 else 0.0
                self.encoder[f"en_conv{n}"] = Residuals(dims[n], kernel(n), dropout, config.depth)
                self.decoder[f"de_conv{n}"] = Residuals(dims[n], kernel(n), dropout, config.depth)
            for n in range(_LEVELS - 1):
                self.encoder[f"down{n}"] = Down(dims[n], dims[n + 1], kernel(n), strides[n])
                self.decoder[f"upcat{n}"] = UpJoin(dims[n + 1], dims[n], kernel(n), strides[n])
            self.out_layers = nn.ModuleList(
                _convolution(dims[n], config.classes, kernel(n)) for n in range(config.heads)
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
        """One layer per encoder level and decoder level; the heads come last."""
        encoder = [("project.", "encoder.en_conv0.")]
        encoder += [(f"encoder.down{n - 1}.", f"encoder.en_conv{n}.") for n in range(1, _LEVELS)]
        decoder = [(f"decoder.upcat{n}.", f"decoder.de_conv{n}.") for n in range(_LEVELS - 1, -1, -1)]
        return [*encoder, *decoder, self.head_prefixes]

    def features(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Features of the five encoder levels, full resolution first; see `Backbone.features`."""
        self.check_size(x)
        out: list[Tensor] = []
        for level in range(_LEVELS):
            x = self.run_stage(level, self._encode, level, x)
            out.append(x)
        return out

    def _encode(self, level: int, x: Tensor) -> Tensor:
        x = self.encoder[f"down{level - 1}"](x) if level else self.project(x)
        return self.encoder[f"en_conv{level}"](x)

    def up(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the four finest decoder levels, full resolution first; see `Backbone.up`."""
        *skips, y = features
        y = self.run_stage(_LEVELS - 1, self.decoder["de_conv4"], y)
        out: list[Tensor] = []
        for level in range(_LEVELS - 2, -1, -1):
            y = self.run_stage(level, self._step, level, y, skips[level])
            out.append(y)
        return out[::-1]

    def _step(self, level: int, y: Tensor, skip: Tensor) -> Tensor:
        return self.decoder[f"de_conv{level}"](self.decoder[f"upcat{level}"](y, skip))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Class logits of each head, full resolution first; see `Backbone.forward`."""
        features = self.decode(x)[: self.config.heads]
        return [head(y) for head, y in zip(self.out_layers, features, strict=True)]

    def _kernel(self, level: int) -> int:
        return 9 if level < self.config.flat_levels else 27

    def _residual_flops(self, level: int, voxels: int) -> int:
        channels = self.config.channels[level]
        return self.config.depth * conv_flops(channels, channels, self._kernel(level), voxels)

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        before, total = self.config.in_channels, 0
        for n, level in enumerate(self.levels):
            voxels = grid(size, level)
            total += conv_flops(before, level.channels, self._kernel(max(n - 1, 0)), voxels)
            total += self._residual_flops(n, voxels)
            before = level.channels
        return total

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        total = self.encoder_flops(size) + self._residual_flops(_LEVELS - 1, grid(size, self.levels[-1]))
        for n, (level, deeper) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            voxels = grid(size, level)
            total += conv_flops(deeper.channels, level.channels, 1, grid(size, deeper))
            total += conv_flops(2 * level.channels, level.channels, self._kernel(n), voxels)
            total += self._residual_flops(n, voxels)
            if n < self.config.heads:
                total += conv_flops(level.channels, self.config.classes, self._kernel(n), voxels)
        return total
