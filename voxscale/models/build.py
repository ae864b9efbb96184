"""From a model's config to the model."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, cast

import pydantic
import torch

from voxscale.config import from_dict, require
from voxscale.models.fmunet import FMUNet, FMUNetConfig
from voxscale.models.interface import Backbone
from voxscale.models.nnunet import NNUNet, NNUNetConfig
from voxscale.models.pctnet import PCTNet, PCTNetConfig
from voxscale.models.sam_vit import SamViT, SamViTConfig
from voxscale.models.sizes import Stride
from voxscale.models.stunet import STUNet, STUNetConfig
from voxscale.models.swin_unetr import SwinUNETR, SwinUNETRConfig
from voxscale.models.timm_models import TimmBackbone, TimmConfig
from voxscale.models.vit import ViT, ViTConfig

ModelConfig = Annotated[
    STUNetConfig | NNUNetConfig | FMUNetConfig | PCTNetConfig | SwinUNETRConfig | ViTConfig | TimmConfig | SamViTConfig,
    pydantic.Field(discriminator="kind"),
]
"""Configs that `build` knows, told apart by `kind`."""


def build(config: ModelConfig, device: torch.device | str | None = None) -> Backbone:
    """Build the network that a config describes.

    Args:
        config: One of the known configs.
        device: Where the weights live; `meta` for shapes without values.

    Raises:
        ConfigError: If the network needs a package of the extra `models` that is not installed.
    """
    match config:
        case STUNetConfig():
            return STUNet(config, device)
        case NNUNetConfig():
            return NNUNet(config, device)
        case FMUNetConfig():
            return FMUNet(config, device)
        case PCTNetConfig():
            return PCTNet(config, device)
        case SwinUNETRConfig():
            return SwinUNETR(config, device)
        case ViTConfig():
            return ViT(config, device)
        case TimmConfig():
            return TimmBackbone(config, device)
        case SamViTConfig():
            return SamViT(config, device)


def read_config(values: object, where: str = "model") -> ModelConfig:
    """Read a model's config back from plain values, such as those a checkpoint holds.

    Raises:
        ConfigError: Naming the dotted key, the problem and the value found.
    """
    return from_dict(cast(Any, ModelConfig), values, where)


def adapt(config: ModelConfig, *, in_channels: int, classes: int, heads: int, strides: Sequence[Stride]) -> ModelConfig:
    """The same backbone for other images and outputs.

    Args:
        config: One of the known configs.
        in_channels: Image channels.
        classes: Output classes with the background; 0 without heads.
        heads: Deep-supervision heads; networks with fewer decoder levels take as many as they have.
        strides: (z, y, x) stride of each downsampling step that the patch allows; see `fit_strides`.
            Networks whose strides are fixed leave them.

    Raises:
        ConfigError: If the network has no decoder and heads are wanted.
    """
    if isinstance(config, (ViTConfig, TimmConfig, SamViTConfig)):
        require(heads == 0, "model", "one with a decoder", config.kind)
        return dataclasses.replace(config, in_channels=in_channels)
    if isinstance(config, (STUNetConfig, NNUNetConfig)):
        z, y, x, w, v = fit_strides(strides, 5)
        config = dataclasses.replace(config, strides=(z, y, x, w, v))
    most = 1 if isinstance(config, SwinUNETRConfig) else 4 if isinstance(config, (FMUNetConfig, PCTNetConfig)) else 5
    return dataclasses.replace(config, in_channels=in_channels, classes=classes, heads=min(heads, most))


def fit_strides(strides: Sequence[Stride], steps: int) -> tuple[Stride, ...]:
    """Strides for a network of another number of downsampling steps.

    Surplus deep steps are left out, lacking ones keep the resolution, as STU-Net
    does with the pooling steps that nnU-Net plans.
    """
    return (*strides[:steps], *[(1, 1, 1)] * (steps - len(strides)))
