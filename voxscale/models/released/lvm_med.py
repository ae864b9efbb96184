"""LVM-Med's ResNet-50 and ViT-B for images.

The ResNet is read under torchvision's names, which are timm's too. Neither the
released files nor the code that loads them were at hand: the names are second-hand.
"""

from collections.abc import Mapping

from torch import Tensor

from voxscale.errors import CheckpointError
from voxscale.models.released.names import Named, name, shape, tensors_at
from voxscale.models.timm_models import TimmConfig

ABSENT: tuple[str, ...] = ()
_PREFIXES = ("backbone.", "image_encoder.")
_RESNET = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


def read(content: object) -> Named:
    """The network's weights without classifier.

    Raises:
        CheckpointError: If the file holds a ViT, which has no backbone here.
    """
    tensors = tensors_at(content, "state_dict", "model", "")
    if any(".attn.qkv." in key for key in tensors):
        raise CheckpointError("released.weights must be LVM-Med's ResNet-50, not its ViT, which has no backbone here")

    def rule(key: str) -> str | None:
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        return f"net.{key}" if key.startswith(_RESNET) else None

    return name(tensors, rule, "not of the backbone")


def config(weights: Mapping[str, Tensor]) -> TimmConfig:
    """The network by its channels."""
    return TimmConfig(name="resnet50", in_channels=shape(weights, "net.conv1.weight")[1])
