"""Image backbones by name, from timm: ResNet-50, ConvNeXt and ViT."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.config import config, require
from voxscale.models.interface import Backbone, Tokens
from voxscale.models.layers import conv_flops, draw_truncated, initialise_layers
from voxscale.models.optional import load
from voxscale.models.sizes import Level, check_stages, nearest_multiple, strided_size
from voxscale.models.vit import TAPS, transformer_flops

Name = Literal["resnet50", "convnext_base", "convnext_atto", "vit_base_patch16_224", "vit_tiny_patch16_224"]

_CONVNEXT: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "convnext_base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_atto": ((40, 80, 160, 320), (2, 2, 6, 2)),
}
_VIT_WIDTH = {"vit_base_patch16_224": 768, "vit_tiny_patch16_224": 192}
_VIT_DEPTH = 12
_RESNET_BLOCKS = (3, 4, 6, 3)
_LAYER_SCALE = 1e-6
"""First value of ConvNeXt's layer scale (Liu et al. 2022, appendix A.1)."""


@config
class TimmConfig:
    """Which of timm's networks.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        name: As timm names it.
        in_channels: Image channels.
        checkpoint_stages: Levels (of a ViT, quarters of the blocks) that are recomputed in the backward pass.
    """

    kind: Literal["timm"] = "timm"
    name: Name
    in_channels: int = 3
    checkpoint_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(self.in_channels >= 1, "model.in_channels", "at least 1", self.in_channels)
        check_stages(self.checkpoint_stages, 5 if self.name == "resnet50" else 4)


class TimmBackbone(Backbone):
    """ResNet (He et al. 2016), ConvNeXt (Liu et al. 2022) or ViT (Dosovitskiy et al. 2021) without classifier.

    Weight names are those of timm behind `net.`.
    """

    decay_free: ClassVar[tuple[str, ...]] = ("cls_token", "pos_embed")

    def __init__(self, config: TimmConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Which network.
            device: See `Backbone.place`.

        Raises:
            ConfigError: If timm is not installed.
        """
        super().__init__()
        self.config, self.dims, self.decoder_levels = config, 2, 0
        self.checkpoint_stages = config.checkpoint_stages
        self.family = config.name.split("_")[0]
        self.sees_parts = self.family == "resnet50"
        more = {"dynamic_img_size": True} if self.family == "vit" else {}
        with torch.device("meta"):
            self.net: Any = load("timm", "timm").create_model(
                config.name, pretrained=False, num_classes=0, in_chans=config.in_channels, **more
            )
        if self.family == "convnext":
            self.net.head = nn.Identity()  # its norm belongs to the classifier
        self.levels = _levels(config.name)
        self.place(device)

    @property
    def input_weights(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight of the first convolution."""
        return (
            {"resnet50": "net.conv1", "convnext": "net.stem.0", "vit": "net.patch_embed.proj"}[self.family] + ".weight",
        )

    def initialise(self, generator: torch.Generator) -> None:
        """See `Backbone.initialise`; a ResNet's last norm of each block starts at zero."""
        initialise_layers(self, generator, he=self.family == "resnet50")
        for name, p in self.named_parameters():
            if name.endswith(self.decay_free):
                draw_truncated(p, generator)
            elif name.endswith(".gamma"):
                nn.init.constant_(p, _LAYER_SCALE)
            elif self.family == "resnet50" and name.endswith("bn3.weight"):
                nn.init.zeros_(p)

    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The nearest multiple of the coarsest stride; a ResNet needs more than one place there."""
        step = self.levels[-1].stride
        if self.family == "resnet50":
            return strided_size(size, [(1, *step)])  # pyright: ignore[reportArgumentType]
        return nearest_multiple(size, step)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The stem, then stages; of a ViT blocks."""
        if self.family == "resnet50":
            return [("net.conv1.", "net.bn1."), *[(f"net.layer{i}.",) for i in range(1, 5)]]
        if self.family == "convnext":
            return [("net.stem.",), *[(f"net.stages.{i}.",) for i in range(4)]]
        first = ("net.patch_embed.", "net.cls_token", "net.pos_embed")
        return [first, *[(f"net.blocks.{i}.",) for i in range(_VIT_DEPTH)], ("net.norm.",)]

    def features(self, x: Float[Tensor, "b c y x"]) -> list[Tensor]:
        """Features of the stages; of a ViT after each quarter of the blocks. See `Backbone.features`."""
        self.check_size(x)
        if self.family == "vit":
            values, grid = self._taps(x)
            placed = [self.net.norm(y)[:, 1:].transpose(1, 2) for y in values]
            return [y.reshape(len(x), -1, *grid) for y in placed]
        out: list[Tensor] = []
        for level, stage in enumerate(self._stages()):
            x = self.run_stage(level, stage, x)
            out.append(x)
        return out

    def _stages(self) -> list[Any]:
        net = self.net
        if self.family == "convnext":
            return [nn.Sequential(net.stem, net.stages[0]), *net.stages[1:]]
        stem = nn.Sequential(net.conv1, net.bn1, net.act1)
        return [stem, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4]

    def _taps(self, x: Float[Tensor, "b c y x"]) -> tuple[list[Tensor], tuple[int, ...]]:
        net, each = self.net, _VIT_DEPTH // TAPS
        y = net.patch_embed(x)
        grid = tuple(y.shape[1:3])
        y = net.norm_pre(net.patch_drop(net._pos_embed(y)))  # timm has no public name for it
        taps: list[Tensor] = []
        for quarter in range(TAPS):
            y = self.run_stage(quarter, net.blocks[quarter * each : (quarter + 1) * each], y)
            taps.append(y)
        return taps, grid

    def tokens(self, x: Float[Tensor, "b c y x"]) -> Tokens:
        """Class token and patch tokens of a ViT; see `Backbone.tokens`."""
        if self.family != "vit":
            return super().tokens(x)
        self.check_size(x)
        taps, grid = self._taps(x)
        return Tokens(self.net.norm(taps[-1]), 1, grid)

    def encoder_flops(self, size: Sequence[int]) -> int:
        """See `Backbone.encoder_flops`."""
        y, x = size
        if self.family == "vit":
            width, places = _VIT_WIDTH[self.config.name], y * x // 256
            embed = conv_flops(self.config.in_channels, width, 256, places)
            return embed + transformer_flops(places + 1, width, _VIT_DEPTH, 4)
        if self.family == "convnext":
            return _convnext_flops(self.config, y * x)
        return _resnet_flops(self.config.in_channels, y * x)

    def flops(self, size: Sequence[int]) -> int:
        """See `Backbone.flops`."""
        return self.encoder_flops(size)


def _levels(name: Name) -> tuple[Level, ...]:
    if name in _VIT_WIDTH:
        return (Level(_VIT_WIDTH[name], (16, 16)),) * TAPS
    if name == "resnet50":
        return tuple(Level(c, (s, s)) for c, s in ((64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)))
    widths = _CONVNEXT[name][0]
    return tuple(Level(width, (4 << i, 4 << i)) for i, width in enumerate(widths))


def _convnext_flops(config: TimmConfig, pixels: int) -> int:
    before, total = config.in_channels, 0
    for stage, (width, depth) in enumerate(zip(*_CONVNEXT[config.name], strict=True)):
        places = pixels // (4 << stage) ** 2
        total += conv_flops(before, width, 16 if stage == 0 else 4, places)
        depthwise, perceptron = conv_flops(1, width, 49, places), 2 * conv_flops(width, 4 * width, 1, places)
        total += depth * (depthwise + perceptron)
        before = width
    return total


def _resnet_flops(in_channels: int, pixels: int) -> int:
    total, before = conv_flops(in_channels, 64, 49, pixels // 4), 64
    for stage, blocks in enumerate(_RESNET_BLOCKS):
        middle, after, places = 64 << stage, 256 << stage, pixels // (4 << stage) ** 2
        for block in range(blocks):
            # The first convolution of a stage still works on the finer grid; the second has the stride.
            finer = 4 if block == 0 and stage else 1
            total += conv_flops(before, middle, finer, places) + conv_flops(middle, middle, 9, places)
            total += conv_flops(middle, after, 1, places) + (conv_flops(before, after, 1, places) if block == 0 else 0)
            before = after
    return total
