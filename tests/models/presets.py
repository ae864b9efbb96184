"""Every backbone preset with outputs, and a narrow twin of each from the same builder."""

import dataclasses
import functools
import inspect

import torch
from torch import Tensor

import configs.models
from voxscale.models.build import ModelConfig, adapt, build
from voxscale.models.fmunet import FMUNetConfig
from voxscale.models.interface import Backbone
from voxscale.models.nnunet import NNUNetConfig
from voxscale.models.pctnet import PCTNetConfig
from voxscale.models.sam_vit import SamViTConfig
from voxscale.models.stunet import STUNetConfig
from voxscale.models.swin_unetr import SwinUNETRConfig
from voxscale.models.timm_models import TimmConfig
from voxscale.models.vit import ViTConfig
from voxscale.seed import torch_generator

CLASSES = 3


def is_preset(value: object) -> bool:
    own = inspect.isfunction(value) and value.__module__ == configs.models.__name__
    return own and not value.__name__.startswith("_")


PRESETS = [name for name, _ in inspect.getmembers(configs.models, is_preset)]


def with_heads(config: ModelConfig, heads: int = 2) -> ModelConfig:
    """The preset with outputs, where it has a decoder to put them on."""
    if not build(config, "meta").decoder_levels:
        return config
    strides = getattr(config, "strides", ())
    return adapt(config, in_channels=config.in_channels, classes=CLASSES, heads=heads, strides=strides)


@functools.cache
def preset(name: str) -> ModelConfig:
    return with_heads(getattr(configs.models, name)())


def narrow(config: ModelConfig) -> ModelConfig:
    """The same architecture with few channels."""
    match config:
        case STUNetConfig():
            return dataclasses.replace(config, width=2)
        case NNUNetConfig():
            return dataclasses.replace(
                config, channels=(2, 3, 4, 6, 8, 8), blocks=tuple(min(n, 2) for n in config.blocks)
            )
        case FMUNetConfig():
            return dataclasses.replace(config, channels=(2, 3, 4, 6, 8))
        case PCTNetConfig():
            return dataclasses.replace(config, channels=(2, 4, 8, 8, 16))
        case SwinUNETRConfig():
            return dataclasses.replace(config, width=12, window=3)
        case ViTConfig():
            return dataclasses.replace(config, width=36, depth=4, attention_heads=3)
        case SamViTConfig():
            small = {"width": 24, "depth": 4, "attention_heads": 2, "window": 2, "global_blocks": (1, 3), "places": 4}
            return dataclasses.replace(config, **small, neck=6)
        case TimmConfig(name="resnet50"):
            return config
        case TimmConfig():
            name = "convnext_atto" if config.name.startswith("convnext") else "vit_tiny_patch16_224"
            return dataclasses.replace(config, name=name)


def smallest(model: Backbone) -> tuple[int, ...]:
    """A legal size whose axes cannot all be halved."""
    size = model.legal_size((1,) * model.dims)
    for axis in range(model.dims):
        less = tuple(n // 2 if i == axis else n for i, n in enumerate(size))
        if min(less) > 0 and model.legal_size(less) == less:
            size = less
    return size


def images(model: Backbone, device: str = "cpu", batch: int = 1) -> Tensor:
    size = (batch, model.config.in_channels, *smallest(model))
    if device == "meta":
        return torch.empty(size, device="meta")
    return torch.randn(size, generator=torch_generator(1, "images"))
