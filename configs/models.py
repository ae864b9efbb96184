"""Backbones by name, without outputs; a stage adds those that its objective needs (`voxscale.models.build.adapt`)."""

from voxscale.models.fmunet import FMUNetConfig
from voxscale.models.nnunet import NNUNetConfig
from voxscale.models.pctnet import PCTNetConfig
from voxscale.models.sam_vit import SamViTConfig
from voxscale.models.stunet import SIZES, STUNetConfig
from voxscale.models.swin_unetr import SwinUNETRConfig
from voxscale.models.timm_models import TimmConfig
from voxscale.models.vit import ViTConfig


def stunet_s() -> STUNetConfig:
    """STU-Net S, 14.6 million weights."""
    return _stunet("S")


def stunet_b() -> STUNetConfig:
    """STU-Net B, 58.3 million weights."""
    return _stunet("B")


def stunet_b_2d() -> STUNetConfig:
    """STU-Net B for images of two dimensions."""
    width, depth = SIZES["B"]
    flat = (1, 2, 2)
    return STUNetConfig(width=width, depth=depth, dims=2, strides=(flat, flat, flat, flat, flat))


def stunet_l() -> STUNetConfig:
    """STU-Net L, 440.3 million weights."""
    return _stunet("L")


def stunet_h() -> STUNetConfig:
    """STU-Net H, 1.46 billion weights."""
    return _stunet("H")


def stunet_xl() -> STUNetConfig:
    """STU-Net by the same rule at width 128 and depth 4, 3.42 billion weights."""
    return _stunet("XL")


def stunet_xxl() -> STUNetConfig:
    """STU-Net by the same rule at width 192 and depth 4, 7.69 billion weights."""
    return _stunet("XXL")


def resenc_l() -> NNUNetConfig:
    """nnU-Net's ResEnc-L, 102 million weights."""
    return NNUNetConfig(
        residual=True, channels=(32, 64, 128, 256, 320, 320), blocks=(1, 3, 4, 6, 6, 6), decoder_blocks=1
    )


def plainconv() -> NNUNetConfig:
    """nnU-Net's plain U-Net, 31 million weights."""
    return NNUNetConfig(
        residual=False, channels=(32, 64, 128, 256, 320, 320), blocks=(2, 2, 2, 2, 2, 2), decoder_blocks=2
    )


def fmunet() -> FMUNetConfig:
    """FMU-Net of MIS-FM for isotropic scans, 47.4 million weights."""
    return FMUNetConfig()


def fmunet_flat() -> FMUNetConfig:
    """FMU-Net of MIS-FM for thick slices: two levels with flat kernels."""
    return FMUNetConfig(flat_levels=2)


def pctnet() -> PCTNetConfig:
    """PCT-Net of MIS-FM in its released mode, 44.2 million weights."""
    return PCTNetConfig()


def swin_unetr() -> SwinUNETRConfig:
    """MONAI's Swin UNETR at width 48, 62 million weights."""
    return SwinUNETRConfig()


def vit_b() -> ViTConfig:
    """Vision transformer of the base size on patches of 16 voxels along each axis."""
    return ViTConfig(width=768, depth=12, attention_heads=12)


def vit_b_2d() -> ViTConfig:
    """The same for images of two dimensions."""
    return ViTConfig(width=768, depth=12, attention_heads=12, patch=(1, 16, 16), dims=2)


def resnet50() -> TimmConfig:
    """ResNet-50 from timm, for images; 23.5 million weights."""
    return TimmConfig(name="resnet50")


def convnext_b() -> TimmConfig:
    """ConvNeXt-B from timm, for images; 87.6 million weights."""
    return TimmConfig(name="convnext_base")


def vit_b_timm() -> TimmConfig:
    """ViT-B from timm, for images; 85.8 million weights."""
    return TimmConfig(name="vit_base_patch16_224")


def sam_vit_b() -> SamViTConfig:
    """Image encoder of Segment Anything's ViT-B, for images; 89.7 million weights."""
    return SamViTConfig()


def lvm_med_vit_b() -> SamViTConfig:
    """The same as LVM-Med trained it: relative positions only, 86.5 million weights."""
    return SamViTConfig(positions=False)


def _stunet(size: str) -> STUNetConfig:
    width, depth = SIZES[size]
    return STUNetConfig(width=width, depth=depth)
