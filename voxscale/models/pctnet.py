"""PCT-Net: the network of MIS-FM that adds windowed attention to convolutions at its three coarse levels.

One file beyond the usual length: its blocks are used by this network alone and carry its published weight names.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.config import config, require
from voxscale.models.interface import Backbone
from voxscale.models.layers import conv_flops, draw_truncated, initialise_layers, volume
from voxscale.models.sizes import Stride, check_outputs, check_stages, grid, levels_of, strided_size
from voxscale.models.swin_block import SwinBlock, mis_fm_positions, shift_mask, swin_flops

_LEVELS = 5
FLAT, CUBE = (1, 3, 3), (3, 3, 3)


@config
class PCTNetConfig:
    """Size and geometry of a PCT-Net.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        channels: Of the five levels, full resolution first.
        attention_heads: Of the three coarse levels.
        blocks: Attention blocks in each encoder and decoder stage of the coarse levels.
        window: Places along each axis within which attention works.
        mode: MIS-FM's resolution mode, the number of fine levels, 0 to 2, with flat kernels and strides.
            Each mode has its own weights at the two fine levels; only those of this one are built.
        dropout: Share of dropped activations at the coarse levels.
        drop_path: Chance that an attention block is skipped in training, per sample.
        in_channels: Image channels.
        classes: Output classes with the background; 0 is allowed without heads.
        heads: Deep-supervision heads, counted from full resolution; only these are built.
        checkpoint_stages: Levels, 0 at full resolution, that are recomputed in the backward pass.
    """

    kind: Literal["pctnet"] = "pctnet"
    channels: tuple[int, int, int, int, int] = (24, 48, 128, 256, 512)
    attention_heads: tuple[int, int, int] = (4, 8, 16)
    blocks: int = 2
    window: int = 6
    mode: int = 1
    dropout: float = 0.2
    drop_path: float = 0.2
    in_channels: int = 1
    classes: int = 0
    heads: int = 0
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(min(self.channels) >= 1, "model.channels", "five numbers of at least 1", self.channels)
        ok = all(c % n == 0 for c, n in zip(self.channels[2:], self.attention_heads, strict=True))
        require(ok, "model.attention_heads", "divisors of the channels of the coarse levels", self.attention_heads)
        require(self.blocks >= 1, "model.blocks", "at least 1", self.blocks)
        require(self.window >= 2, "model.window", "at least 2", self.window)
        require(0 <= self.mode <= 2, "model.mode", "0 to 2", self.mode)
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", "in [0, 1)", getattr(self, name))
        check_outputs(self.in_channels, self.classes, self.heads, _LEVELS - 1)
        check_stages(self.checkpoint_stages, _LEVELS)

    @property
    def strides(self) -> tuple[Stride, ...]:
        """(z, y, x) stride of each of the four downsampling steps."""
        return ((1, 2, 2),) * self.mode + ((2, 2, 2),) * (_LEVELS - 1 - self.mode)

    def kernel(self, level: int) -> Stride:
        """(z, y, x) size of the convolutions of a level."""
        return FLAT if level < self.mode else CUBE


def _convolution(before: int, channels: int, kernel: Stride, *drop: nn.Module) -> nn.Sequential:
    padding = tuple(n // 2 for n in kernel)
    conv = nn.Conv3d(before, channels, kernel, padding=padding)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(nn.BatchNorm3d(before), nn.PReLU(), *drop, conv)


class DoubleConvolution(nn.Module):
    """Two convolutions behind batch norm and activation, with dropout between them."""

    def __init__(self, channels: int, kernel: Stride, dropout: float) -> None:
        super().__init__()
        first = _convolution(channels, channels, kernel)
        self.conv_conv = nn.Sequential(*first, *_convolution(channels, channels, kernel, nn.Dropout(dropout)))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Apply them."""
        return self.conv_conv(x)


class Down(nn.Module):
    """Max pooling and a convolution."""

    def __init__(self, before: int, channels: int, kernel: Stride, stride: Stride) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(stride)
        self.conv = _convolution(before, channels, kernel)

    def forward(self, x: Float[Tensor, "b before z y x"]) -> Float[Tensor, "b channels z2 y2 x2"]:
        """Apply them."""
        return self.conv(self.pool(x))


class UpJoin(nn.Module):
    """A transposed convolution, and a convolution over the joined skip connection."""

    def __init__(self, channels: int, deeper: int, kernel: Stride, stride: Stride) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.BatchNorm3d(deeper), nn.PReLU(), nn.ConvTranspose3d(deeper, channels, stride, stride)
        )
        self.conv = _convolution(2 * channels, channels, kernel)

    def forward(
        self, skip: Float[Tensor, "b channels z y x"], x: Float[Tensor, "b deeper z2 y2 x2"]
    ) -> Float[Tensor, "b channels z y x"]:
        """Apply them."""
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class ConvTransformer(nn.Module):
    """The sum of two convolutions and of windowed attention blocks, every second one with shifted windows."""

    def __init__(self, channels: int, heads: int, config: PCTNetConfig) -> None:
        super().__init__()
        self.window = config.window
        self.conv = DoubleConvolution(channels, CUBE, config.dropout)
        blocks = [
            SwinBlock(channels, heads, config.window, config.dropout, config.drop_path) for _ in range(config.blocks)
        ]
        self.trans = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.norm_layer = _Idle(channels)
        self.pos_drop = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Apply both branches."""
        places = tuple(x.shape[2:])
        # A window that holds a whole axis is not shifted.
        shift = self.window // 2 if min(places) > self.window else 0
        mask = shift_mask(places, self.window, shift, x.device) if shift else None
        tokens = self.pos_drop(x.movedim(1, -1))
        for index, block in enumerate(self.trans["blocks"]):  # pyright: ignore[reportArgumentType]
            odd = index % 2 == 1
            tokens = block(tokens, shift if odd else 0, mask if odd else None)
        return self.conv(x) + tokens.movedim(-1, 1)


class _Idle(nn.Module):
    """A layer norm that the released weights hold and nothing uses: buffers, as there is nothing to train."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(channels))
        self.register_buffer("bias", torch.empty(channels))

    def reset(self) -> None:
        """The identity."""
        nn.init.ones_(self.get_buffer("weight"))
        nn.init.zeros_(self.get_buffer("bias"))


class PCTNet(Backbone):
    """PCT-Net (Wang et al. 2023, MIS-FM, arXiv 2306.16925), with the published weight names but for any input size.

    The weights do not depend on the input size, which the published class fixes at
    construction. Batch norm keeps running statistics: they are buffers, not parameters.
    """

    decay_free: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)

    def __init__(self, config: PCTNetConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: See `Backbone.place`.
        """
        super().__init__()
        self.config, self.dims, self.decoder_levels = config, 3, _LEVELS - 1
        self.levels = levels_of(config.channels, config.strides, 3)
        self.checkpoint_stages = config.checkpoint_stages
        self.mode = str(config.mode)
        with torch.device("meta"):
            self.embeddings = nn.ModuleDict({self.mode: _embedding(config)})
            self.pyramid_ct = _pyramid(config)
            self.pred_heads = nn.ModuleDict({self.mode: _decoder(config)})
        self.place(device)

    @property
    def head_prefixes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Heads stand in two parts of the network."""
        at = f"pred_heads.{self.mode}"
        return (f"{at}.out_conv0.", f"{at}.out_conv1.", "pyramid_ct.out_conv2.", "pyramid_ct.out_conv3.")

    @property
    def input_weights(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight of the first convolution."""
        return (f"embeddings.{self.mode}.proj.weight",)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`."""
        initialise_layers(self, generator)
        for module in self.modules():
            if isinstance(module, _Idle):
                module.reset()
            elif isinstance(module, SwinBlock):
                draw_truncated(module.attn.relative_position_bias_table, generator)
                module.attn.relative_position_index.copy_(mis_fm_positions(self.config.window))

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """See `strided_size`."""
        return strided_size(size, self.config.strides)

    def size_rule(self) -> str:
        """See `Backbone.size_rule`."""
        return f"a multiple of {self.levels[-1].stride} voxels with more than one voxel at the deepest stage"

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """One layer per encoder level and decoder level; the heads come last."""
        fine, head, core = f"embeddings.{self.mode}.", f"pred_heads.{self.mode}.", "pyramid_ct."
        return [
            (f"{fine}proj.", f"{fine}conv0."),
            (f"{fine}down1.", f"{fine}conv1."),
            (f"{fine}down2.", f"{core}convtrans_e2."),
            (f"{core}down3.", f"{core}convtrans_e3."),
            (f"{core}down4.", f"{core}convtrans_e4."),
            (f"{core}up4.", f"{core}convtrans_d3."),
            (f"{core}up3.", f"{core}convtrans_d2."),
            (f"{head}up2.", f"{head}conv1."),
            (f"{head}up1.", f"{head}conv0."),
            self.head_prefixes,
        ]

    def features(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Features of the five encoder levels, full resolution first; see `Backbone.features`."""
        self.check_size(x)
        fine: Any = self.embeddings[self.mode]
        core: Any = self.pyramid_ct
        stages = (
            (fine.proj, fine.conv0),
            (fine.down1, fine.conv1),
            (fine.down2, core.convtrans_e2),
            (core.down3, core.convtrans_e3),
            (core.down4, core.convtrans_e4),
        )
        out: list[Tensor] = []
        for level, stage in enumerate(stages):
            x = self.run_stage(level, _encode, x, *stage)
            out.append(x)
        return out

    def up(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the four finest decoder levels, full resolution first; see `Backbone.up`."""
        *skips, y = features
        head: Any = self.pred_heads[self.mode]
        core: Any = self.pyramid_ct
        steps = (
            (core.up4, core.convtrans_d3),
            (core.up3, core.convtrans_d2),
            (head.up2, head.conv1),
            (head.up1, head.conv0),
        )
        out: list[Tensor] = []
        for level, step in zip(range(_LEVELS - 2, -1, -1), steps, strict=True):
            y = self.run_stage(level, _decode, skips[level], y, *step)
            out.append(y)
        return out[::-1]

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Class logits of each head, full resolution first; see `Backbone.forward`."""
        names = [prefix.removesuffix(".") for prefix in self.head_prefixes]
        features = self.decode(x)[: self.config.heads]
        return [self.get_submodule(f"{name}.conv")(y) for name, y in zip(names, features, strict=False)]

    def _kernel(self, level: int) -> int:
        return volume(self.config.kernel(level))

    def _stage_flops(self, level: int, size: Sequence[int]) -> int:
        at = self.levels[level]
        places = [n // s for n, s in zip(size, at.stride, strict=True)]
        total = 2 * conv_flops(at.channels, at.channels, self._kernel(level), volume(places))
        if level >= 2:
            total += self.config.blocks * swin_flops(places, at.channels, self.config.window)
        return total

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        before, total = self.config.in_channels, 0
        for n, level in enumerate(self.levels):
            total += conv_flops(before, level.channels, self._kernel(n), grid(size, level))
            total += self._stage_flops(n, size)
            before = level.channels
        return total

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        total = self.encoder_flops(size)
        for n, (level, deeper) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            voxels = grid(size, level)
            total += conv_flops(deeper.channels, level.channels, 1, voxels)
            total += conv_flops(2 * level.channels, level.channels, self._kernel(n), voxels)
            total += self._stage_flops(n, size)
            if n < self.config.heads:
                total += conv_flops(level.channels, self.config.classes, 1, voxels)
        return total


def _encode(x: Tensor, first: nn.Module, then: nn.Module) -> Tensor:
    return then(first(x))


def _decode(skip: Tensor, x: Tensor, up: nn.Module, then: nn.Module) -> Tensor:
    return then(up(skip, x))


def _embedding(config: PCTNetConfig) -> nn.Module:
    """The two fine encoder levels and the step to the third."""
    c, kernel, strides = config.channels, config.kernel, config.strides
    made = nn.Module()
    padding = tuple(n // 2 for n in kernel(0))
    made.proj = nn.Conv3d(config.in_channels, c[0], kernel(0), padding=padding)  # pyright: ignore[reportArgumentType]
    made.conv0 = DoubleConvolution(c[0], kernel(0), 0.0)
    made.conv1 = DoubleConvolution(c[1], kernel(1), 0.0)
    made.down1 = Down(c[0], c[1], kernel(1), strides[0])
    made.down2 = Down(c[1], c[2], CUBE, strides[1])
    return made


def _pyramid(config: PCTNetConfig) -> nn.Module:
    """Encoder and decoder of the three coarse levels, and their two heads."""
    c, h, half = config.channels, config.attention_heads, (2, 2, 2)
    made = nn.Module()
    made.down3, made.down4 = Down(c[2], c[3], CUBE, half), Down(c[3], c[4], CUBE, half)
    made.up3, made.up4 = UpJoin(c[2], c[3], CUBE, half), UpJoin(c[3], c[4], CUBE, half)
    for name, level in (("e2", 2), ("d2", 2), ("e3", 3), ("d3", 3), ("e4", 4)):
        made.add_module(f"convtrans_{name}", ConvTransformer(c[level], h[level - 2], config))
    for level in range(2, config.heads):
        made.add_module(f"out_conv{level}", _head(c[level], config.classes))
    return made


def _decoder(config: PCTNetConfig) -> nn.Module:
    """Decoder of the two fine levels, and their two heads."""
    c, kernel, strides = config.channels, config.kernel, config.strides
    made = nn.Module()
    made.up1 = UpJoin(c[0], c[1], kernel(0), strides[0])
    made.up2 = UpJoin(c[1], c[2], kernel(1), strides[1])
    made.conv0 = DoubleConvolution(c[0], kernel(0), 0.0)
    made.conv1 = DoubleConvolution(c[1], kernel(1), 0.0)
    for level in range(min(2, config.heads)):
        made.add_module(f"out_conv{level}", _head(c[level], config.classes))
    return made


def _head(channels: int, classes: int) -> nn.Module:
    made = nn.Module()
    made.conv = _convolution(channels, classes, (1, 1, 1))
    return made
