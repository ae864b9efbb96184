"""STU-Net: a residual U-Net of any width and depth whose weights fit every choice of strides."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.config import config, require
from voxscale.seed import torch_generator

Stride = tuple[int, int, int]

CHANNEL_FACTORS = (1, 2, 4, 8, 16, 16)
"""Channels of the six resolution stages as multiples of the width."""

SLOPE = 0.01
"""Negative slope of every LeakyReLU, and the `a` of the He initialisation that goes with it."""

HEAD_PREFIX = "seg_outputs."
"""What the names of all segmentation head weights start with."""

INPUT_WEIGHTS = ("conv_blocks_context.0.0.conv1.weight", "conv_blocks_context.0.0.conv3.weight")
"""The two weights, (out, in, z, y, x), whose second axis is the image channels."""


@config
class STUNetConfig:
    """Size and geometry of a STU-Net.

    Attributes:
        kind: Marks the architecture where configs of several are allowed.
        width: Channels at full resolution; deeper stages have 2, 4, 8, 16 and 16 times as many.
        depth: Residual blocks per stage.
        in_channels: Image channels.
        classes: Output classes with the background; 0 is allowed without heads.
        heads: Deep-supervision heads, counted from full resolution; only these are built.
        strides: (z, y, x) stride of each of the five downsampling steps. A step of (1, 1, 1)
            keeps the resolution, so a small patch can stop early without losing any weight.
    """

    kind: Literal["stunet"] = "stunet"
    width: int
    depth: int
    in_channels: int = 1
    classes: int = 0
    heads: int = 0
    strides: tuple[Stride, Stride, Stride, Stride, Stride] = (
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
    )

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        for name in ("width", "depth", "in_channels"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        steps = len(CHANNEL_FACTORS) - 1
        require(0 <= self.heads <= steps, "model.heads", f"0 to {steps}", self.heads)
        fewest = 1 if self.heads else 0
        condition = f"{fewest} to 256 with {self.heads} heads"
        require(fewest <= self.classes <= 256, "model.classes", condition, self.classes)
        ok = len(self.strides) == steps and all(len(s) == 3 and all(1 <= n <= 3 for n in s) for s in self.strides)
        require(ok, "model.strides", f"{steps} triples of 1 to 3", self.strides)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the six resolution stages, full resolution first."""
        return tuple(self.width * factor for factor in CHANNEL_FACTORS)


def legal_size(size: Sequence[int], strides: Sequence[Stride]) -> tuple[int, ...]:
    """The input size nearest to the one wanted that a network with these strides accepts.

    Every axis must be a multiple of the product of its strides, or decoder and
    encoder features do not fit together; halfway cases are rounded up. And the
    deepest stage must keep more than one voxel, because instance normalisation
    of a single value is always zero; all axes are doubled where it would not.

    Args:
        size: Wanted (z, y, x) in voxels.
        strides: (z, y, x) stride of each downsampling step.
    """
    factors = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
    deepest = [max((2 * n + factor) // (2 * factor), 1) for n, factor in zip(size, factors, strict=True)]
    grow = 2 if math.prod(deepest) == 1 else 1
    return tuple(grow * n * factor for n, factor in zip(deepest, factors, strict=True))


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolution weights afresh; biases become 0 and norms the identity.

    The weights are He-normal for LeakyReLU (He et al. 2015, "Delving Deep into
    Rectifiers", section 2.2). They are drawn on the generator's device and then
    copied, so a CPU generator gives the same network on every device.

    Args:
        model: A model that is not on the meta device.
        generator: Source of the draws.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv3d):
                drawn = torch.empty(module.weight.shape, device=generator.device)
                module.weight.copy_(nn.init.kaiming_normal_(drawn, a=SLOPE, generator=generator))
            elif isinstance(module, nn.InstanceNorm3d):
                module.weight.fill_(1)
            else:
                continue
            if module.bias is not None:
                module.bias.fill_(0)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm, added to a shortcut.

    Attributes:
        conv3: 1x1x1 shortcut convolution without norm; None if the shortcut is the identity.
    """

    def __init__(self, before: int, channels: int, stride: Stride = (1, 1, 1), *, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, channels, 3, stride=stride, padding=1)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(channels, affine=True)
        self.conv3 = nn.Conv3d(before, channels, 1, stride=stride) if project else None

    def forward(self, x: Float[Tensor, "b before z y x"]) -> Float[Tensor, "b channels z2 y2 x2"]:
        """Apply the block."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        y = self.norm2(self.conv2(y))
        shortcut = x if self.conv3 is None else self.conv3(x)
        return F.leaky_relu(y + shortcut, SLOPE, inplace=True)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling with a 1x1x1 convolution; no weight depends on the scale."""

    def __init__(self, before: int, channels: int, scale: Stride) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, channels, 1)
        self.scale = tuple(map(float, scale))

    def forward(self, x: Float[Tensor, "b before z y x"]) -> Float[Tensor, "b channels z2 y2 x2"]:
        """Apply the convolution, then enlarge."""
        # STU-Net enlarges first. A pointwise convolution commutes with copying voxels,
        # and in this order it runs on an eighth of them.
        y = self.conv(x)
        return y if max(self.scale) == 1 else F.interpolate(y, scale_factor=self.scale, mode="nearest")


def _stage(before: int, channels: int, depth: int, stride: Stride = (1, 1, 1)) -> nn.Sequential:
    first = ResidualBlock(before, channels, stride, project=True)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, project=False) for _ in range(depth - 1)))


class STUNet(nn.Module):
    """STU-Net (Huang et al. 2023, arXiv 2304.06716), with the weight names of the released models.

    Six resolution stages joined by strided residual blocks, a decoder of the same
    depth, and 1x1x1 segmentation heads. `seg_outputs.4` is the head at full
    resolution and `seg_outputs.0` the coarsest one.
    """

    def __init__(self, config: STUNetConfig, device: torch.device | str | None = None) -> None:
        """Build the network.

        Args:
            config: Size and geometry.
            device: Where the weights live. On `meta` they have no values: follow with
                `to_empty` and `initialise`. Elsewhere they are initialised, always alike;
                call `initialise` to draw them from a generator of your own.
        """
        super().__init__()
        self.config = config
        dims = config.channels
        strides: tuple[Stride, ...] = ((1, 1, 1), *config.strides)
        steps = range(len(dims) - 2, -1, -1)  # encoder stage that each decoder step returns to, deepest first
        # On meta the layers do not draw initial values of their own from the global generator.
        with torch.device("meta"):
            self.conv_blocks_context = nn.ModuleList(
                _stage(before, channels, config.depth, stride)
                for before, channels, stride in zip((config.in_channels, *dims), dims, strides, strict=False)
            )
            self.upsample_layers = nn.ModuleList(Upsample(dims[n + 1], dims[n], strides[n + 1]) for n in steps)
            self.conv_blocks_localization = nn.ModuleList(_stage(2 * dims[n], dims[n], config.depth) for n in steps)
            self.seg_outputs = nn.ModuleDict(
                {str(u): nn.Conv3d(dims[n], config.classes, 1) for u, n in enumerate(steps) if n < config.heads}
            )
        target = torch.get_default_device() if device is None else torch.device(device)
        if target.type != "meta":
            self.to_empty(device=target)
            initialise(self, torch_generator(0, "initialise"))

    def features(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Features of the six encoder stages, full resolution first.

        Args:
            x: Images.

        Returns:
            Tensors (b, channels[i], z, y, x), each smaller than the one before by its stride.

        Raises:
            ConfigError: If the size does not fit the strides; names the nearest that does.
        """
        size = tuple(x.shape[2:])
        legal = legal_size(size, self.config.strides)
        factors = tuple(math.prod(stride[axis] for stride in self.config.strides) for axis in range(3))
        condition = f"a multiple of {factors} voxels with more than one voxel at the deepest stage (nearest: {legal})"
        require(size == legal, "model.input_size", condition, size)
        out: list[Tensor] = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            out.append(x)
        return out

    def decode(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Features of the five decoder steps, full resolution first.

        Args:
            x: Images, as in `features`.

        Returns:
            Tensors (b, channels[i], z, y, x) on the grids of the first five encoder stages.

        Raises:
            ConfigError: As `features` does.
        """
        *skips, y = self.features(x)
        out: list[Tensor] = []
        for up, stage in zip(self.upsample_layers, self.conv_blocks_localization, strict=True):
            y = stage(torch.cat([up(y), skips.pop()], dim=1))
            out.append(y)
        return out[::-1]

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
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
