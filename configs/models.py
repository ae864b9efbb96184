"""Backbones by name, without outputs; a stage adds those that its objective needs (`voxscale.models.build.adapt`)."""

from voxscale.models.stunet import SIZES, STUNetConfig


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


def _stunet(size: str) -> STUNetConfig:
    width, depth = SIZES[size]
    return STUNetConfig(width=width, depth=depth)
