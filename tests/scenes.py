"""Scenes of noise for objectives."""

import torch

from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale.batch import Batch
from voxscale.seed import torch_generator


def noise_scene(samples: int = 2, crops: int = 1, patch: tuple[int, int, int] = (16, 16, 16)) -> Scene:
    """Crops that lie two voxels inside of their boxes, in 2D on their only plane."""
    n, margin = samples * crops, [0 if side == 1 else 2 for side in patch]
    size = [side + 2 * more for side, more in zip(patch, margin, strict=True)]
    place = torch.cat([torch.eye(3), torch.tensor(margin).float().unsqueeze(1)], dim=1)
    batch = Batch(
        voxels=torch.rand(n, 1, *size, generator=torch_generator(3, "scene")),
        label=None,
        sizes=torch.tensor(size).float().repeat(n, 1),
        matrix=place.repeat(n, 1, 1),
        scale=torch.tensor([[1.0, 0.0]]).repeat(n, 1),
        seeds=tuple(range(n)),
        indices=tuple(i // crops for i in range(n)),
    )
    return Scene(batch, patch, crops, ViewsConfig(intensity=False))
