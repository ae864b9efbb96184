"""On one GPU: the matching solver's time per graph, Volume Fusion's share of copy bandwidth: `make bench ONLY=ops_gpu`.

`ratio` is the smaller share of the copy bandwidth that fusing pairs (labels painted) reaches at 96^3 and 128^3,
batch 32, float32, from parameters drawn before; goal 0.7. `with_draws` counts the host's draws too. Bytes are those
that must move: the pair read, fused volume and label written.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable

import torch
from graph_instances import REGIMES, instances
from harness import finish

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.fusion_labels import draw_grids
from pretrain.objectives.volume_fusion import draw_and_fuse, gpu_kernel
from voxscale.matching.solver import SolverConfig, solve
from voxscale.seed import rng, torch_generator

GOAL, BATCH = 0.7, 32
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after two to warm up."""
    took = []
    for _ in range(rounds + 2):
        if CUDA:
            torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        if CUDA:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return sorted(took[2:])[rounds // 2]


def events(function: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of a call by the device's own clock."""
    took = []
    for _ in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        took.append(start.elapsed_time(end))
    return sorted(took[2:])[rounds // 2]


def solver(nodes: int, regime: str, batch: int) -> dict[str, float]:
    """Microseconds a graph on the device, and the worth beside the CPU's."""
    from voxscale.matching.score import score

    problem = instances(batch, nodes, regime)
    there = dataclasses.replace(
        problem, **{f.name: getattr(problem, f.name).to(DEVICE) for f in dataclasses.fields(problem)}
    )
    config = SolverConfig(steps=160, exchanges=nodes)
    took = seconds(lambda: solve(there, config), 5 if CUDA else 1)
    worths = [float(score(p, solve(p, config)).mean()) for p in (there, problem)]
    return {
        "us_per_graph": round(took / batch * 1e6, 2),
        "ms": round(took * 1e3, 3),
        "worth": worths[0],
        "cpu_worth": worths[1],
    }


def fusion(side: int, rounds: int) -> dict[str, float]:
    """Seconds of a fused batch, and of a copy of as many bytes."""
    size = (BATCH, 1, side, side, side)
    pair = [torch.rand(size, generator=torch_generator(i, "bench")).to(DEVICE) for i in (0, 1)]
    seeds, config = itertools.count(), VolumeFusionConfig()
    moved = pair[0].numel() * (4 + 4 + 4 + 1)  # two crops read, one and a label written
    source = torch.empty(moved // 2, dtype=torch.uint8, device=DEVICE)
    copy = torch.empty_like(source)
    ours = seconds(lambda: draw_and_fuse(*pair, [next(seeds) for _ in range(BATCH)], config), rounds)
    theirs = seconds(lambda: copy.copy_(source), rounds)
    found = {"with_draws": round(theirs / ours, 4), "draw_and_fuse_ms": round(ours * 1e3, 4)}
    draws = [rng(seed, "fusion") for seed in range(BATCH)]
    table, places = draw_grids(draws, size[2:], config, DEVICE)
    short = tuple(place.int() for place in places)
    on_gpu = gpu_kernel() if CUDA else None
    share = theirs / ours
    if on_gpu is not None:  # what the device does; the host draws while it works at something else
        took = events(lambda: on_gpu(*pair, table, short, config.levels), rounds)
        share = events(lambda: copy.copy_(source), rounds) / took
        found |= {"fuse_ms": round(took, 4)}
    return found | {"share": round(share, 4), "copy_ms": round(theirs * 1e3, 4)}


def main() -> None:
    """Measure all cells; without a GPU small, and no result file is written."""
    graphs = {
        f"n{nodes}_{regime}_b{batch}": solver(nodes, regime, batch)
        for nodes in ((16, 32, 64) if CUDA else (16,))
        for regime in REGIMES
        for batch in ((12, 96) if CUDA else (12,))
    }
    fused = {str(side): fusion(side, 30 if CUDA else 2) for side in ((96, 128) if CUDA else (32,))}
    ratio = min(one["share"] for one in fused.values())
    if not CUDA:
        print(json.dumps({"name": "ops_gpu small", "graphs": graphs, "fusion": fused}))
        return
    finish("ops_gpu", ratio, GOAL, ratio >= GOAL, graphs=graphs, fusion=fused, gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
