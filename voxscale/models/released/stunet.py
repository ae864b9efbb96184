"""STU-Net's `.model` files, as nnU-Net v1 wrote them."""

from collections.abc import Mapping

from torch import Tensor

from voxscale.models.released.names import Named, count, name, shape, tensors_at
from voxscale.models.stunet import STUNetConfig

ABSENT: tuple[str, ...] = ()
_PARTS = ("conv_blocks_context.", "upsample_layers.", "conv_blocks_localization.", "seg_outputs.")


def read(content: object) -> Named:
    """The network's weights; ours has the same names (tested against medim's class)."""
    tensors = tensors_at(content, "state_dict")
    return name(tensors, lambda key: key if key.startswith(_PARTS) else None, "not of STU-Net")


def config(weights: Mapping[str, Tensor]) -> STUNetConfig:
    """Size and outputs by the shapes; strides as the released models were trained with."""
    width, channels, *_ = shape(weights, "conv_blocks_context.0.0.conv1.weight")
    classes = shape(weights, "seg_outputs.4.weight")[0] if "seg_outputs.4.weight" in weights else 0
    two = (2, 2, 2)
    return STUNetConfig(
        width=width,
        depth=count(weights, "conv_blocks_context.0.{}.conv1.weight"),
        in_channels=channels,
        classes=classes,
        heads=count(weights, "seg_outputs.{}.weight") if classes else 0,
        strides=(two, two, two, two, (1, 1, 2)),
    )
