"""From a model's config to the model."""

import torch

from voxscale.models.stunet import STUNet, STUNetConfig

ModelConfig = STUNetConfig
"""Configs that `build` knows."""

SIZES: dict[str, tuple[int, int]] = {"S": (16, 1), "B": (32, 1), "L": (64, 2), "H": (96, 3)}
"""Width and depth of the published STU-Net sizes: 14.6, 58.3, 440.3 and 1457.3 million weights."""


def build(config: ModelConfig, device: torch.device | str | None = None) -> STUNet:
    """Build the network that a config describes.

    Args:
        config: One of the known configs.
        device: Where the weights live; `meta` for shapes without values.
    """
    match config:
        case STUNetConfig():
            return STUNet(config, device)
