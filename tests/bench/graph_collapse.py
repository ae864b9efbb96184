"""What keeps graph matching from collapse: `python tests/bench/graph_collapse.py FOLDER_OF_NIFTI [MINUTES]`.

A small 2D STU-Net is trained from scratch by graph matching of slices (graphs of 4 scans x 4 neighbouring slices) with
several weights of the terms against collapse: three seeds of the cases that answer it, then one of the others.
Of fixed slices of the same scans are measured, every 50 steps: effective rank of the pooled encoder features and of the
projections, length of the deviation of unit projections (1: they point everywhere, 0: all are one). Writes
`docs/results/gm_collapse.json`, and leaves out what it finds there.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
import torch
from harness import ROOT, describe
from torch import Tensor
from torch.nn import functional as F

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pretraining
from pretrain.objectives.graph_config import GraphMatchingConfig, info_nce_twin, paper
from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale.batch import Batch
from voxscale.engine.heap import keep_freed_memory
from voxscale.files import write_json
from voxscale.metrics.effective_rank import effective_rank
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.seed import rng, torch_generator

STORED, SIDE = 128, 96
STEPS, EVERY = 200, 50
GRAPHS, SCANS, NEAR = 2, 4, 4
SEEDS, CORE = 3, 5
STEP = (1, 2, 2)
CASES = {
    "variance 0": GraphMatchingConfig(variance_weight=0.0),
    "variance 1": GraphMatchingConfig(variance_weight=1.0),
    "variance 0, InfoNCE 1": GraphMatchingConfig(variance_weight=0.0, info_nce_weight=1.0),
    "variance 1, InfoNCE 1": GraphMatchingConfig(variance_weight=1.0, info_nce_weight=1.0),
    "as the paper": paper(),
    "variance 0.1": GraphMatchingConfig(variance_weight=0.1),
    "variance 10": GraphMatchingConfig(variance_weight=10.0),
    "InfoNCE alone": info_nce_twin(GraphMatchingConfig()),
}


def slices_of(folder: Path) -> list[Tensor]:
    """(n, 128, 128) of each scan in 0..1: the middle three fifths along the last axis."""
    out = []
    for file in sorted(folder.glob("*.nii*")):
        values = np.asarray(nib.load(file).dataobj, dtype=np.float32)
        if values.ndim != 3 or min(values.shape) < 12:
            continue
        low, high = np.percentile(values, (0.5, 99.5))
        part = values[:, :, values.shape[2] // 5 : values.shape[2] * 4 // 5]
        planes = torch.from_numpy(np.clip((part - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)).permute(
            2, 0, 1
        )[:, None]
        out.append(F.interpolate(planes, size=(STORED, STORED), mode="bilinear", antialias=True)[:, 0])
    return out


def batch_of(planes: Tensor, first: int) -> Batch:
    """Slices as boxes, of which the middle is the crop."""
    count = len(planes)
    return Batch(
        voxels=planes[:, None, None].contiguous(),
        label=None,
        sizes=torch.tensor([[1.0, STORED, STORED]]).repeat(count, 1),
        matrix=(torch.eye(3, 4) + F.pad(torch.tensor([[0.0], [16.0], [16.0]]), (3, 0))).repeat(count, 1, 1),
        scale=torch.tensor([[1.0, 0.0]]).repeat(count, 1),
        seeds=tuple(range(first, first + count)),
        indices=tuple(range(first, first + count)),
    )


def a_batch(scans: list[Tensor], seed: int, step: int) -> Batch:
    """Graphs of neighbouring slices of several scans."""
    generator, chosen = rng(seed, "graphs", step), []
    for _ in range(GRAPHS):
        for scan in generator.permutation(len(scans))[:SCANS]:
            start = int(generator.integers(0, len(scans[scan]) - NEAR + 1))
            chosen.append(scans[scan][start : start + NEAR])
    return batch_of(torch.cat(chosen), step * GRAPHS * SCANS * NEAR)


@torch.no_grad()
def measure(network: Pretraining, planes: Tensor) -> dict[str, float]:
    """Ranks and spread on fixed slices."""
    images = planes[:, None, 16 : 16 + SIDE, 16 : 16 + SIDE]
    pooled = network.backbone.features(images)[-1].flatten(2).mean(dim=2)
    z = network.objectives()["graph_matching"].heads.projector(pooled)  # type: ignore[union-attr]
    unit = F.normalize(z, dim=1)
    return {
        "encoder_rank": round(effective_rank(pooled), 2),
        "projector_rank": round(effective_rank(z), 2),
        "spread": round(float(unit.std(dim=0, unbiased=False).square().sum().sqrt()), 4),
        "embedding_std": round(float(z.std(dim=0).mean()), 4),
    }


def run(config: GraphMatchingConfig, scans: list[Tensor], seed: int) -> list[dict[str, float]]:
    """One training; a row for each measurement."""
    backbone = build(STUNetConfig(width=8, depth=1, dims=2, strides=(STEP,) * 5))
    weights = WeightsConfig(volume_fusion=0.0, graph_matching=1.0)
    network = Pretraining(backbone, branches(MixtureConfig(weights=weights, graph_matching=config), backbone))
    network.initialise(torch_generator(seed, "weights"))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    fixed = torch.cat([scan[np.linspace(0, len(scan) - 1, 6).astype(int)] for scan in scans])
    rows: list[dict[str, float]] = [{"step": 0, **measure(network, fixed)}]
    seen: dict[str, list[float]] = {}
    for step in range(STEPS):
        plans = network.plans(Scene(a_batch(scans, seed, step), (1, SIDE, SIDE), 1, ViewsConfig()))
        out = network(Job(plans, dict.fromkeys(plans, 1.0)))
        optimiser.zero_grad(set_to_none=True)
        torch.stack([out["weights"][name] * term for name, term in out["terms"].items()]).sum().backward()
        optimiser.step()
        for name in ("retrieval", "match_accuracy", "map_accuracy"):
            if name in out["watched"]:
                seen.setdefault(name, []).append(float(out["watched"][name]))
        if (step + 1) % EVERY == 0:
            means = {name: round(float(np.mean(values[-EVERY:])), 3) for name, values in seen.items()}
            rows.append({"step": step + 1, **measure(network, fixed), **means})
    return rows


def main() -> None:
    """The first five cases for three seeds, then the others for one, until time is up."""
    torch.set_num_threads(1)
    keep_freed_memory()
    scans = slices_of(Path(sys.argv[1]))
    until = time.monotonic() + 60 * float(sys.argv[2] if len(sys.argv) > 2 else 30)
    out = ROOT / "docs" / "results" / "gm_collapse.json"
    found: dict[str, dict[str, list[dict[str, float]]]] = json.loads(out.read_text())["cases"] if out.exists() else {}
    names = list(CASES)
    planned = [(name, seed) for seed in range(SEEDS) for name in names[:CORE]] + [(name, 0) for name in names[CORE:]]
    for name, seed in planned:
        if str(seed) in found.get(name, {}):
            continue
        if time.monotonic() > until:
            return
        began = time.monotonic()
        found.setdefault(name, {})[str(seed)] = run(CASES[name], scans, seed)
        print(f"{name}, seed {seed}: {found[name][str(seed)][-1]} {time.monotonic() - began:.0f} s", flush=True)
        told = {"scans": len(scans), "steps": STEPS, "nodes": SCANS * NEAR, "graphs": GRAPHS, "cases": found}
        write_json(out, told | {"machine": describe()})


if __name__ == "__main__":
    main()
