"""The gradient of every term of every unsupervised objective, averaged over ranks, in each of a few steps.

`python step_gradients.py FILE` as one of several ranks; rank 0 writes them.
"""

import copy
import sys

import torch
from torch import Tensor

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pretraining
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale import dist
from voxscale.batch import Batch
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.seed import torch_generator

SAMPLES, CROPS, STEPS, SIDE = 8, 2, 2, 20
PATCH = (16, 16, 16)
MODEL = STUNetConfig(width=2, depth=1, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
MIXTURE = MixtureConfig(
    weights=WeightsConfig(graph_matching=1.0, part_whole=1.0, masked_reconstruction=1.0, patch_matching=1.0),
    volume_fusion=VolumeFusionConfig(block_min=2, block_max=6, ordinal_weight=0.5),
    graph_matching=GraphMatchingConfig(group=4, k=2, width=8, info_nce_weight=1.0),
    patch_matching=GraphMatchingConfig(mode="patch", nodes=16, k=3, width=8, level=1, info_nce_weight=1.0),
    part_whole=PartWholeConfig(hidden=16, bottleneck=8, prototypes=32, least_voxels=0, local_views=2),
)
POOLED = {"volume_fusion/dice", "graph_matching/variance", "patch_matching/variance"}
"""Terms that are computed over the samples of one micro-batch of one rank, see `docs/design.md`."""


def a_scene(step: int, rank: int, world: int) -> Scene:
    """A rank's share of a step's samples."""
    count = SAMPLES * CROPS
    mine = slice(rank * count // world, (rank + 1) * count // world)
    voxels = torch.rand(count, 1, SIDE, SIDE, SIDE, generator=torch_generator(step, "scene"))[mine]
    numbers = range(step * count, (step + 1) * count)[mine]
    n = len(voxels)
    batch = Batch(
        voxels=voxels,
        label=None,
        sizes=torch.full((n, 3), float(SIDE)),
        matrix=torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 1, 2]]).repeat(n, 1, 1),
        scale=torch.tensor([[1.0, 0.0]]).repeat(n, 1),
        seeds=tuple(numbers),
        indices=tuple(number // CROPS for number in numbers),
    )
    return Scene(batch, PATCH, CROPS, ViewsConfig(), progress=0.5)


def gradients(rank: int, world: int) -> dict[str, Tensor]:
    """By step and term; weights move by a draw: bits that rounding gave them might take a value over a ReLU's kink."""
    backbone = build(MODEL)
    network = Pretraining(backbone, branches(MIXTURE, backbone))
    network.initialise(torch_generator(0, "weights"))
    teacher = copy.deepcopy(network).eval()
    weights = list(network.parameters())
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        plans = network.plans(a_scene(step, rank, world))
        out = network(Job(plans, dict.fromkeys(plans, 1.0), teacher=teacher))
        for name, term in out["terms"].items():
            own = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
            found[f"{step} {name}"] = dist.mean(torch.cat([g.flatten() for g in own]))
        generator = torch_generator(step, "move")
        with torch.no_grad():
            for p in weights:
                p += 0.05 * p.abs() * torch.randn(p.shape, generator=generator)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.start()
    told = gradients(dist.rank(), dist.world_size())
    if dist.rank() == 0:
        torch.save(told, sys.argv[1])
    dist.stop()
