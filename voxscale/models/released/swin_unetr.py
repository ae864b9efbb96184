"""Self-supervised weights for MONAI's Swin UNETR: the transformer without the U-Net around it."""

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from voxscale.models.released.names import Named, count, name, shape, tensors_at, window_of
from voxscale.models.swin_unetr import SwinUNETRConfig

ABSENT = ("encoder1.", "encoder2.", "encoder3.", "encoder4.", "encoder10.", "decoder", "out.")
_PARTS = re.compile(r"(patch_embed|layers[1-4])\.")


def read(content: object) -> Named:
    """The Swin transformer's weights.

    `model_swinvit.pt` (Tang et al. 2022) names them from the transformer on, with perceptrons `fc1` and `fc2`
    (MONAI 1.6.1, `SwinTransformerBlock.load_from`); `ssl_pretrained_weights.pth` (Valanarasu et al. 2023) has
    them in `encoder.` with one more level of stages (`filter_swinunetr`).
    """
    tensors = tensors_at(content, "state_dict", "model")
    return name(tensors, _own_name, "not of the Swin transformer")


def _own_name(key: str) -> str | None:
    key = key.removeprefix("swinViT.")
    key = re.sub(r"^encoder\.(layers\d\.\d+)\.\d+\.", r"\1.", key).removeprefix("encoder.")
    key = key.replace(".mlp.fc", ".mlp.linear")
    return f"swinViT.{key}" if _PARTS.match(key) else None


def config(weights: Mapping[str, Tensor]) -> SwinUNETRConfig:
    """Size by the shapes."""
    width, channels, *kernel = shape(weights, "swinViT.patch_embed.proj.weight")
    dims = 3 if len(kernel) == 3 else 2
    stage = "swinViT.layers{}.0.blocks."
    windows = [window_of(weights, f"{stage.format(i)}0.attn.relative_position_bias_table", dims) for i in range(1, 5)]
    depths = [count(weights, stage.format(i) + "{}.attn.qkv.weight") for i in range(1, 5)]
    return SwinUNETRConfig(
        width=width,
        depths=cast(Any, tuple(depths)),
        attention_heads=cast(Any, tuple(heads for _, heads in windows)),
        window=windows[0][0],
        dims=dims,
        in_channels=channels,
    )
