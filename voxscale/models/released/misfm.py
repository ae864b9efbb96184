"""MIS-FM's checkpoints of FMU-Net and PCT-Net, as PyMIC writes them."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from voxscale.models.fmunet import FMUNetConfig
from voxscale.models.pctnet import PCTNetConfig
from voxscale.models.released.names import Named, count, name, shape, tensors_at, window_of

ABSENT: tuple[str, ...] = ()
_MODE = 1
"""PCT-Net's files hold three resolution modes; this is the one of the published recipe."""


def read(content: object) -> Named:
    """The network's weights; ours have the same names, of PCT-Net only those of the published mode."""
    tensors = tensors_at(content, "model_state_dict")

    def rule(key: str) -> str | None:
        part, _, rest = key.partition(".")
        other = part in ("embeddings", "pred_heads") and not rest.startswith(f"{_MODE}.")
        return None if other else key

    return name(tensors, rule, "of another resolution mode")


def config(weights: Mapping[str, Tensor]) -> FMUNetConfig | PCTNetConfig:
    """Architecture and size by names and shapes."""
    if "project.weight" in weights:
        return _fmunet(weights)
    first, core = f"embeddings.{_MODE}.", "pyramid_ct."
    wide, channels, *_ = shape(weights, f"{first}proj.weight")
    table = core + "convtrans_e{}.trans.blocks.0.attn.relative_position_bias_table"
    windows = [window_of(weights, table.format(level), 3) for level in (2, 3, 4)]
    deeper = [f"{first}down1.conv.2", f"{first}down2.conv.2", f"{core}down3.conv.2", f"{core}down4.conv.2"]
    head = f"pred_heads.{_MODE}.out_conv0.conv.2.weight"
    return PCTNetConfig(
        channels=cast(Any, (wide, *(shape(weights, f"{at}.weight")[0] for at in deeper))),
        attention_heads=cast(Any, tuple(heads for _, heads in windows)),
        blocks=count(weights, core + "convtrans_e2.trans.blocks.{}.attn.qkv.weight"),
        window=windows[0][0],
        mode=_MODE,
        in_channels=channels,
        classes=shape(weights, head)[0] if head in weights else 0,
        heads=4 if head in weights else 0,
    )


def _fmunet(weights: Mapping[str, Tensor]) -> FMUNetConfig:
    wide, channels, *_ = shape(weights, "project.weight")
    deeper = [shape(weights, f"encoder.down{n}.down.2.weight")[0] for n in range(4)]
    flat = [shape(weights, f"encoder.en_conv{n}.conv_list.0.3.weight")[2] == 1 for n in range(2)]
    head = "out_layers.0.2.weight"
    return FMUNetConfig(
        channels=cast(Any, (wide, *deeper)),
        depth=count(weights, "encoder.en_conv0.conv_list.{}.3.weight"),
        flat_levels=sum(flat),
        in_channels=channels,
        classes=shape(weights, head)[0] if head in weights else 0,
        heads=count(weights, "out_layers.{}.2.weight"),
    )
