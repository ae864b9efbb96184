"""Losses and the gradient of every term, averaged over ranks, of many objectives in a few steps.

`python step_gradients.py FILE STORE CASES` as one of several ranks; rank 0 writes them.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pretraining
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.scene import Labelled, Scene
from pretrain.views import ViewsConfig
from voxscale import dist
from voxscale.batch import Batch, collate
from voxscale.contract import InputContract
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.samples import all_samples
from voxscale.seed import torch_generator
from voxscale.stream.labelled import LabelledStream

SAMPLES, CROPS, STEPS, SIDE = 8, 2, 2, 20
PATCH = (16, 16, 16)
MODEL = STUNetConfig(width=2, depth=1, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
GRAPHS = GraphMatchingConfig(group=4, k=2, width=8, info_nce_weight=1.0)
TOKENS = GraphMatchingConfig(mode="patch", nodes=16, k=3, width=8, level=1, info_nce_weight=1.0)
PARTS = PartWholeConfig(hidden=16, bottleneck=8, prototypes=32, least_voxels=0, local_views=2)
NONE = WeightsConfig(volume_fusion=0.0, part_whole=1.0)
MIXTURE = MixtureConfig(
    weights=WeightsConfig(graph_matching=1.0, part_whole=1.0, masked_reconstruction=1.0, patch_matching=1.0),
    volume_fusion=VolumeFusionConfig(block_min=2, block_max=6, ordinal_weight=0.5),
    graph_matching=GRAPHS,
    patch_matching=TOKENS,
    part_whole=PARTS,
)


def only(name: str, **configs: object) -> MixtureConfig:
    """One objective alone."""
    return MixtureConfig(weights=WeightsConfig(**{"volume_fusion": 0.0, name: 1.0}), **configs)


def case(name: str, store: Path | None) -> MixtureConfig:
    """The config of a case."""
    fusion = MIXTURE.volume_fusion
    match name:
        case "mixture":
            return MIXTURE
        case "fusion within scans" | "fusion with nothing on a rank":
            return only("volume_fusion", volume_fusion=replace(fusion, least_difference=0.05))
        case "fusion across the batch":
            return only("volume_fusion", volume_fusion=replace(fusion, layout="boxes", pairing="across"))
    raise ValueError(name)


def a_scene(step: int, rank: int, world: int, labelled: LabelledStream | None = None, *, half: bool = False) -> Scene:
    """A rank's share of a step's samples, of which each later one lies further outside of its scan and is more air.

    If `half`, the second half of them lies outside of their scans altogether.
    """
    count = SAMPLES * CROPS
    mine = slice(rank * count // world, (rank + 1) * count // world)
    voxels = torch.rand(count, 1, SIDE, SIDE, SIDE, generator=torch_generator(step, "scene"))
    place = torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 1, 2]]).repeat(count, 1, 1)
    for row in range(count):
        place[row, 0, 3] += row // CROPS + (100 if half and 2 * row >= count else 0)
        voxels[row, :, :, : 2 * (row // CROPS)] = 0.0
    voxels, place = voxels[mine], place[mine]
    numbers = range(step * count, (step + 1) * count)[mine]
    n = len(voxels)
    batch = Batch(
        voxels=voxels,
        label=None,
        sizes=torch.full((n, 3), float(SIDE)),
        matrix=place,
        scale=torch.tensor([[1.0, 0.0]]).repeat(n, 1),
        seeds=tuple(numbers),
        indices=tuple(number // CROPS for number in numbers),
    )
    beside = None
    if labelled is not None:
        own = [labelled.sample(number // CROPS)[0][0] for number in numbers[::CROPS]]
        beside = Labelled(collate(own), tuple(labelled.set_of(number // CROPS) for number in numbers[::CROPS]))
    return Scene(batch, PATCH, CROPS, ViewsConfig(), progress=0.5, labelled=beside, over=all_samples())


def gradients(config: MixtureConfig, rank: int, world: int, *, half: bool = False) -> dict[str, Tensor]:
    """By step and term; weights move by a draw: bits that rounding gave them might take a value over a ReLU's kink."""
    backbone = build(MODEL)
    network = Pretraining(backbone, branches(config, backbone))
    network.initialise(torch_generator(0, "weights"))
    teacher = copy.deepcopy(network).eval()
    weights = list(network.parameters())
    labelled = None
    if "supervised" in config.active:
        own = config.supervised
        labelled = LabelledStream(own.read(), PATCH, InputContract(spacing=(2.0, 1.5, 1.5)), own.stream, 0)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        scene = a_scene(step, rank, world, labelled, half=half)
        plans = network.plans(scene)
        out = network(Job(plans, dict.fromkeys(plans, 1.0), teacher=teacher, over=scene.over))
        for name, term in out["terms"].items():
            own = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
            found[f"{step} {name} gradient"] = dist.mean(torch.cat([g.flatten() for g in own]))
            found[f"{step} {name} value"] = dist.mean(term.double())
        for name, value in out["watched"].items():
            found[f"{step} {name} watched"] = dist.mean(value.double())
        generator = torch_generator(step, "move")
        with torch.no_grad():
            for p in weights:
                p += 0.05 * p.abs() * torch.randn(p.shape, generator=generator)
    return found


def all_gradients(store: Path | None, cases: list[str], rank: int, world: int) -> dict[str, Tensor]:
    """Of several cases."""
    found: dict[str, Tensor] = {}
    for name in cases:
        of_case = gradients(case(name, store), rank, world, half="nothing" in name)
        found |= {f"{name}: {key}": value for key, value in of_case.items()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.start()
    told = all_gradients(Path(sys.argv[2]), sys.argv[3].split(","), dist.rank(), dist.world_size())
    if dist.rank() == 0:
        torch.save(told, sys.argv[1])
    dist.stop()
