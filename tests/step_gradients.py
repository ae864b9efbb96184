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
from pretrain.objectives.graph_config import GraphMatchingConfig, info_nce_twin
from pretrain.objectives.masked_reconstruction import MaskedReconstructionConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.scene import Labelled, Scene
from pretrain.views import ViewsConfig
from voxscale import dist
from voxscale.batch import Batch, collate
from voxscale.contract import InputContract
from voxscale.matching.solver import SolverConfig
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.samples import all_samples
from voxscale.seed import torch_generator
from voxscale.stream.labelled import LabelledStream

SAMPLES, CROPS, STEPS, SIDE = 8, 2, 2, 20
PATCH = (16, 16, 16)
MODEL = STUNetConfig(width=2, depth=1, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
GRAPHS = GraphMatchingConfig(group=4, k=2, width=8, info_nce_weight=1.0, solver=SolverConfig(steps=15, kicks=2))
TOKENS = GraphMatchingConfig(mode="patch", nodes=40, k=3, width=8, level=2, info_nce_weight=1.0)
PARTS = PartWholeConfig(hidden=16, bottleneck=8, prototypes=32, least_voxels=0, local_views=2)
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


def case(name: str, store: Path) -> MixtureConfig:
    """The config of a case, whose name may also say what the second half of the samples is, see `a_scene`."""
    fusion = MIXTURE.volume_fusion
    match name:
        case "mixture":
            return MIXTURE
        case "fusion within scans":
            return only("volume_fusion", volume_fusion=replace(fusion, least_difference=0.05))
        case "fusion across the batch":
            return only("volume_fusion", volume_fusion=replace(fusion, layout="boxes", pairing="across"))
        case "graphs of samples":
            return only("graph_matching", graph_matching=GRAPHS)
        case "graphs of crops":
            return only("graph_matching", graph_matching=replace(GRAPHS, mode="sub_volume", crops=2, spatial_k=1))
        case "graphs of tokens":
            return only("patch_matching", patch_matching=TOKENS)
        case "contrast of samples":
            return only("graph_matching", graph_matching=info_nce_twin(GRAPHS))
        case "contrast of tokens":
            return only("patch_matching", patch_matching=info_nce_twin(TOKENS))
        case "parts":
            return only("part_whole", part_whole=replace(PARTS, spread=1.0))
        case "parts of all options":
            more = replace(PARTS, centring="sinkhorn", inputs="standard", targets="centred", match="contrast")
            return only("part_whole", part_whole=replace(more, truth="another", spread=1.0))
        case "masked":
            return only("masked_reconstruction", masked_reconstruction=MaskedReconstructionConfig(normalise=True))
        case "masked told another":
            another = MaskedReconstructionConfig(truth="another", loss="l1")
            return only("masked_reconstruction", masked_reconstruction=another)
        case "supervised":
            own = SupervisedConfig(sets=(store,), heads=2)
            return only("supervised", supervised=own)
    raise ValueError(name)


def a_scene(step: int, rank: int, world: int, labelled: LabelledStream | None = None, second: str = "") -> Scene:
    """A rank's share of a step's samples, of which each later one lies further outside of its scan and is more air.

    The second half of them may be `outside` of their scans altogether, or all `air`, or every other one `empty`.
    """
    count = SAMPLES * CROPS
    mine = slice(rank * count // world, (rank + 1) * count // world)
    voxels = torch.rand(count, 1, SIDE, SIDE, SIDE, generator=torch_generator(step, "scene"))
    place = torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 1, 2]]).repeat(count, 1, 1)
    for row in range(count):
        last = 2 * row >= count
        place[row, 0, 3] += row // CROPS // 2 + (100 if last and second == "outside" else 0)
        voxels[row, :, : SIDE if last and second == "air" else 2 * (row // CROPS)] *= 0.01
        voxels[row] *= 0.0 if row // CROPS % 2 and second == "empty" else 1.0
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


def labelled_of(config: MixtureConfig) -> LabelledStream | None:
    """The labelled samples of a config, if it asks for any."""
    if "supervised" not in config.active:
        return None
    own = config.supervised
    return LabelledStream(own.read(), PATCH, InputContract(spacing=(2.0, 1.5, 1.5)), own.stream, 0)


def gradients(config: MixtureConfig, rank: int, world: int, second: str = "", steps: int = STEPS) -> dict[str, Tensor]:
    """By step and term; weights move by a draw: bits that rounding gave them might take a value over a ReLU's kink."""
    backbone = build(MODEL)
    network = Pretraining(backbone, branches(config, backbone))
    network.initialise(torch_generator(0, "weights"))
    teacher = copy.deepcopy(network).eval()
    weights = list(network.parameters())
    labelled = labelled_of(config)
    found: dict[str, Tensor] = {}
    for step in range(steps):
        scene = a_scene(step, rank, world, labelled, second)
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


def all_gradients(store: Path, cases: list[str], rank: int, world: int, steps: int = STEPS) -> dict[str, Tensor]:
    """Of several cases."""
    found: dict[str, Tensor] = {}
    for name in cases:
        plain, _, second = name.partition(", ")
        of_case = gradients(case(plain, store), rank, world, second, steps)
        found |= {f"{name}: {key}": value for key, value in of_case.items()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.start()
    told = all_gradients(Path(sys.argv[2]), sys.argv[3].split("|"), dist.rank(), dist.world_size())
    if dist.rank() == 0:
        torch.save(told, sys.argv[1])
    dist.stop()
