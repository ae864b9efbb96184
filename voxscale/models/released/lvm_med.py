"""LVM-Med's ResNet-50 and ViT-B for images.

The ResNet is read under torchvision's names, which are timm's too; neither its released
file nor the code that loads it was at hand. The ViT is read under the names of the
repository's own class, which are those of Segment Anything's image encoder.
"""

from collections.abc import Mapping

from torch import Tensor

from voxscale.models.released.names import Named, count, name, shape, tensors_at
from voxscale.models.sam_vit import SamViTConfig
from voxscale.models.timm_models import TimmConfig

ABSENT: tuple[str, ...] = ()
_PREFIXES = ("model.", "backbone.", "image_encoder.")
_RESNET = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_VIT = ("patch_embed.", "pos_embed", "blocks.", "neck.")


def read(content: object) -> Named:
    """The network's weights without classifier, prompt encoder and mask decoder.

    Raises:
        CheckpointError: If there are no weights.
    """
    tensors = tensors_at(content, "state_dict", "model", "")

    def rule(key: str) -> str | None:
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        return f"net.{key.replace('.mlp.lin', '.mlp.fc')}" if key.startswith((*_RESNET, *_VIT)) else None

    return name(tensors, rule, "not of the backbone")


def config(weights: Mapping[str, Tensor]) -> TimmConfig | SamViTConfig:
    """The network by the shapes of its weights; of a ViT the blocks with the larger tables attend to all places.

    Raises:
        CheckpointError: If weights that such files hold are not there.
    """
    if "net.patch_embed.proj.weight" not in weights:
        return TimmConfig(name="resnet50", in_channels=shape(weights, "net.conv1.weight")[1])
    width, in_channels = shape(weights, "net.patch_embed.proj.weight")[:2]
    depth = count(weights, "net.blocks.{}.attn.qkv.weight")
    tables = [shape(weights, f"net.blocks.{block}.attn.rel_pos_h") for block in range(depth)]
    rows = [table[0] for table in tables]
    return SamViTConfig(
        width=width,
        depth=depth,
        attention_heads=width // shape(weights, "net.blocks.0.attn.rel_pos_h")[1],
        window=(min(rows) + 1) // 2,
        global_blocks=tuple(block for block, n in enumerate(rows) if n == max(rows)),
        places=(max(rows) + 1) // 2,
        positions="net.pos_embed" in weights,
        neck=shape(weights, "net.neck.0.weight")[0],
        in_channels=in_channels,
    )
