"""VoxScale: self-supervised pretraining of 3D medical segmentation backbones."""

__version__ = "0.1.0"
