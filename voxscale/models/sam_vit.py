"""The image encoder of Segment Anything, which LVM-Med's ViT shares; timm's class with all sizes free."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.config import config, require
from voxscale.models.interface import Backbone, Tokens
from voxscale.models.layers import conv_flops, draw_truncated, initialise_layers
from voxscale.models.optional import load
from voxscale.models.sizes import Level, check_stages, nearest_multiple
from voxscale.models.vit import TAPS

PATCH = 16
_HIDDEN = 4
"""Width of the perceptron's hidden layer in widths."""


@config
class SamViTConfig:
    """Size of the encoder; the defaults are those of SAM's ViT-B.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        width: Channels of a token.
        depth: Blocks; a multiple of 4.
        attention_heads: Attention heads; they divide the width.
        window: Places along each axis within which a block attends.
        global_blocks: Blocks that attend to all places instead.
        places: Places along each axis that the tables of positions are made for; interpolated for other images.
        positions: Whether places have positions of their own too, not only relative ones (SAM has, LVM-Med has not).
        neck: Channels of the last features.
        in_channels: Image channels.
        checkpoint_stages: Quarters of the blocks, 0 to 3, that are recomputed in the backward pass.
    """

    kind: Literal["sam_vit"] = "sam_vit"
    width: int = 768
    depth: int = 12
    attention_heads: int = 12
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    places: int = 64
    positions: bool = True
    neck: int = 256
    in_channels: int = 3
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(self.depth >= TAPS and self.depth % TAPS == 0, "model.depth", f"a multiple of {TAPS}", self.depth)
        require(self.attention_heads >= 1, "model.attention_heads", "at least 1", self.attention_heads)
        ok = self.width >= 1 and self.width % self.attention_heads == 0
        require(ok, "model.width", f"a multiple of {self.attention_heads}, the attention heads", self.width)
        ok = set(self.global_blocks) <= set(range(self.depth))
        require(ok, "model.global_blocks", f"numbers below {self.depth}, the depth", self.global_blocks)
        for name in ("window", "places", "neck", "in_channels"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        check_stages(self.checkpoint_stages, TAPS)


class SamViT(Backbone):
    """ViT with windows and relative positions (Kirillov et al. 2023, appendix A; Li et al. 2022, ViTDet).

    Weight names are those of timm's `VisionTransformerSAM` behind `net.`.
    """

    input_weights: ClassVar[tuple[str, ...]] = ("net.patch_embed.proj.weight",)
    decay_free: ClassVar[tuple[str, ...]] = ("pos_embed", "rel_pos_h", "rel_pos_w")

    def __init__(self, config: SamViTConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Its size.
            device: See `Backbone.place`.

        Raises:
            ConfigError: If timm is not installed.
        """
        super().__init__()
        self.config, self.dims, self.decoder_levels = config, 2, 0
        self.checkpoint_stages = config.checkpoint_stages
        tap = Level(config.width, (PATCH, PATCH))
        self.levels = (tap, tap, tap, Level(config.neck, (PATCH, PATCH)))
        load("timm", "timm")
        made = load("timm.models.vision_transformer_sam", "timm").VisionTransformerSAM
        with torch.device("meta"):
            self.net: Any = made(
                img_size=PATCH * config.places, patch_size=PATCH, in_chans=config.in_channels,
                embed_dim=config.width, depth=config.depth, num_heads=config.attention_heads, mlp_ratio=_HIDDEN,
                # timm's own default is 1e-5, with which SAM's weights give other outputs.
                norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
                use_abs_pos=config.positions, use_rel_pos=True, window_size=config.window,
                global_attn_indexes=config.global_blocks, neck_chans=config.neck, num_classes=0, global_pool="",
            )  # fmt: skip
        self.place(device)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`; relative positions start at zero, as in ViTDet."""
        initialise_layers(self, generator, he=False)
        for name, p in self.named_parameters():
            if name.endswith("pos_embed"):
                draw_truncated(p, generator)
            elif name.endswith(("rel_pos_h", "rel_pos_w")):
                nn.init.zeros_(p)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The nearest multiple of the patch."""
        return nearest_multiple(size, (PATCH, PATCH))

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The patch embedding, each block, the neck."""
        blocks = [(f"net.blocks.{i}.",) for i in range(self.config.depth)]
        return [("net.patch_embed.", "net.pos_embed"), *blocks, ("net.neck.",)]

    def features(self, x: Float[Tensor, "b c y x"]) -> list[Tensor]:
        """Tokens after the first three quarters of the blocks, and what the neck makes of the last.

        See `Backbone.features`.
        """
        *first, last = [tap.permute(0, 3, 1, 2) for tap in self._taps(x)]
        return [*first, self.net.neck(last)]

    def _taps(self, x: Float[Tensor, "b c y x"]) -> list[Float[Tensor, "b h w c"]]:
        self.check_size(x)
        net, each = self.net, self.config.depth // TAPS
        y = net.patch_embed(x)
        if net.pos_embed is not None:
            resample = load("timm.layers", "timm").resample_abs_pos_embed_nhwc
            y = y + resample(net.pos_embed, y.shape[1:3])
        taps: list[Tensor] = []
        for quarter in range(TAPS):
            y = self.run_stage(quarter, net.blocks[quarter * each : (quarter + 1) * each], y)
            taps.append(y)
        return taps

    def tokens(self, x: Float[Tensor, "b c y x"]) -> Tokens:
        """Tokens of the last block; see `Backbone.tokens`."""
        last = self._taps(x)[-1]
        return Tokens(last.flatten(1, 2), 0, tuple(last.shape[1:3]))

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        config = self.config
        grid = [n // PATCH for n in size]
        places = grid[0] * grid[1]
        total = conv_flops(config.in_channels, config.width, PATCH**2, places)
        total += conv_flops(config.width, config.neck, 1, places) + conv_flops(config.neck, config.neck, 9, places)
        for block in range(config.depth):
            # A windowed block works on whole windows, so the grid is filled up to them.
            side = grid if block in config.global_blocks else [config.window] * 2
            windows = -(-grid[0] // side[0]) * -(-grid[1] // side[1])
            inside = side[0] * side[1]
            attention = 8 * config.width**2 + 4 * inside * config.width + 2 * sum(side) * config.width
            total += windows * inside * attention + 4 * _HIDDEN * places * config.width**2
        return total

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        return self.encoder_flops(size)
