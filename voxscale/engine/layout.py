"""Channels-last images: how they are made, and for which families of backbones they are."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.engine.config import EngineConfig
from voxscale.models.build import ModelConfig
from voxscale.models.nnunet import NNUNetConfig
from voxscale.models.timm_models import TimmConfig

CHANNELS_LAST: Mapping[str, bool] = {
    "stunet": True,
    "plainconv": False,
    "resenc": False,
    "vit": False,
    "sam_vit": False,
    "timm_resnet50": False,
    "timm_convnext": False,
    "fmunet": False,
    "swin_unetr": False,
    "timm_vit": False,
    "pctnet": True,
}
"""Whether `auto` is channels-last, by `make bench ONLY=layouts` on a CPU (`docs/results/layouts.md`)."""

WEIGHTS_LAST: Mapping[str, bool] = {"stunet": False, "pctnet": False}
"""The same of `weights_last`, for those families: steps of STU-Net gain, but fp32 results are not equal to 1e-4. GPUs
were not measured, there `auto` is off."""


def channels_last(images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
    """Images whose strides say channels-last, without a copy where they have one channel.

    torch counts a tensor of one channel as lying in both layouts, so `contiguous(memory_format=...)` returns it
    as it is, with the strides of the contiguous one; and by the strides alone a convolution chooses its kernel and the
    layout of what it returns. Weights may stay contiguous, as they are in DeepSpeed's flat buffers: of the two, one
    that is channels-last is enough. Each convolution copies its weight then, unless `engine.weights_last` spares it.

    Args:
        images: Of two or three spatial dimensions, in any layout.
    """
    layout = torch.channels_last_3d if images.ndim == 5 else torch.channels_last
    batch, channels, *size = images.shape
    if channels > 1:
        return images.contiguous(memory_format=layout)
    steps = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    return images.contiguous().as_strided((batch, 1, *size), (math.prod(size), 1, *steps))


def family(model: ModelConfig) -> str:
    """The name under which a backbone was measured."""
    if isinstance(model, NNUNetConfig):
        return "resenc" if model.residual else "plainconv"
    if isinstance(model, TimmConfig):
        return f"timm_{model.name.split('_')[0]}"
    return model.kind


def settle(engine: EngineConfig, model: ModelConfig) -> EngineConfig:
    """The config with `on` or `off` in the place of `auto`.

    Raises:
        ConfigError: If weights are to be channels-last where images are not.
    """
    name, images, weights = family(model), engine.channels_last, engine.weights_last
    if images == "auto":
        images = "on" if CHANNELS_LAST.get(name, False) else "off"
    if weights == "auto":
        measured = WEIGHTS_LAST.get(name, False) and not torch.cuda.is_available()
        weights = "on" if images == "on" and measured else "off"
    return dataclasses.replace(engine, channels_last=images, weights_last=weights)
