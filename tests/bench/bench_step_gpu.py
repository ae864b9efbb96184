"""Training steps of the large STU-Nets on one GPU: `make bench ONLY=step_gpu`; anywhere small: add `--small`.

STU-Net-H at 128^3, batch 2, bf16, by the engine (AdamW, a real loss) and by medim's class under autocast with torch's
fused AdamW, each in a process of its own: samples/s, MFU, peak memory. Then a few steps of 3.4 and 7.7 billion weights
with optimizer states, and of the largest also weights, in host memory. `ratio` is ours over the reference's samples/s;
0 where the reference does not fit. `--small` runs every line of it on any machine and writes no result file.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import finish
from torch import Tensor, nn

from voxscale.engine.config import EngineConfig, OptimConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.layout import channels_last
from voxscale.engine.meter import BACKWARD, peak_rss_gb, peak_tflops
from voxscale.losses.cross_entropy import cross_entropy
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice import soft_dice_loss
from voxscale.models.build import build
from voxscale.models.stunet import CHANNEL_FACTORS, SIZES, STUNetConfig
from voxscale.seed import torch_generator

GOAL_MFU, GOAL_GB = 0.45, 48.0
CLASSES, HEADS = (5 if "--small" in sys.argv else 105), 4
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@dataclass(frozen=True, slots=True)
class Job:
    """One cell: size of the network, side of the volume, batch, steps, engine settings."""

    width: int
    depth: int
    side: int
    batch: int
    steps: int
    engine: EngineConfig
    stages: tuple[int, ...] = ()


def jobs(small: bool) -> dict[str, Job]:
    """All cells of ours by name; the reference does the first."""
    if small:
        sizes, side, batch, steps = {"H": (2, 3), "XL": (2, 4), "XXL": (3, 4)}, 64, 1, 1
    else:
        sizes, side, batch, steps = SIZES, 128, 2, 10
    states = EngineConfig(zero_stage=2, offload="optimizer")
    everything = EngineConfig(zero_stage=3, offload="all")
    return {
        "H": Job(*sizes["H"], side, batch, steps, EngineConfig(zero_stage=1), (0, 1)),
        "XL": Job(*sizes["XL"], side, 1, min(steps, 3), states, (0, 1, 2, 3)),
        "XXL": Job(*sizes["XXL"], side, 1, min(steps, 3), everything, (0, 1, 2, 3, 4, 5)),
    }


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, halves of the loss."""
    dice = soft_dice_loss(logits, target, pooled=True, background=True)
    return 0.5 * cross_entropy(logits, target) + 0.5 * dice


def our_step(job: Job) -> tuple[Callable[[Tensor, Tensor], float], float]:
    """A step of the engine that returns its loss, and the operations of one."""
    config = STUNetConfig(width=job.width, depth=job.depth, classes=CLASSES, heads=HEADS, checkpoint_stages=job.stages)
    model = build(config)
    flops = float(BACKWARD * model.flops([job.side] * 3) * job.batch)
    # In bf16 the engine replaces the values of the model, so its fp32 ones need no copy.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    engine = start_engine(model, weights, job.engine, OptimConfig(lr=1e-4), job.batch)

    def step(x: Tensor, target: Tensor) -> float:
        images = channels_last(x.bfloat16())
        loss = deep_supervision(loss_of, engine(images), target)
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    return step, flops


def reference_step(job: Job) -> tuple[Callable[[Tensor, Tensor], float], float]:
    """The same of medim's class under autocast; operations are those of ours, as both compute the same function."""
    from medim.models.stu_net import STUNet as Reference

    dims = [job.width * factor for factor in CHANNEL_FACTORS]
    made: nn.Module = Reference(
        1, CLASSES, [job.depth] * 6, dims, [[2, 2, 2]] * 5, [[3, 3, 3]] * 6, enable_deep_supervision=True
    )
    made = made.to(DEVICE)
    ours = build(STUNetConfig(width=job.width, depth=job.depth, classes=CLASSES, heads=HEADS), "meta")
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, fused=True)

    def step(x: Tensor, target: Tensor) -> float:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            outputs = list(made(x)[:HEADS])
        loss = deep_supervision(loss_of, outputs, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, float(BACKWARD * ours.flops([job.side] * 3) * job.batch)


def cell(side: str, name: str, small: bool) -> dict[str, Any]:
    """Median seconds of a step after one to warm up, and peak memory."""
    job = jobs(small)[name]
    step, flops = (our_step if side == "ours" else reference_step)(job)
    x = torch.randn(job.batch, 1, *[job.side] * 3, generator=torch_generator(1)).to(DEVICE)
    target = torch.randint(0, CLASSES, (job.batch, *[job.side] * 3), generator=torch_generator(2), dtype=torch.uint8)
    target = target.to(DEVICE)
    losses, seconds = [], []
    for _ in range(job.steps + 1):
        began = time.perf_counter()
        losses.append(step(x, target))  # reading the loss waits for the device, but not for the optimizer
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    took = sorted(seconds[1:])[job.steps // 2]
    peak = peak_tflops(torch.cuda.get_device_name(), "bf16") if CUDA else 0.0
    return {
        "samples_per_s": round(job.batch / took, 4),
        "tflops": round(flops / took / 1e12, 3),
        "mfu": round(flops / took / 1e12 / peak, 4) if peak else None,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9 if CUDA else peak_rss_gb(), 2),
        "host_gb": round(peak_rss_gb(), 2),
        "losses": [round(loss, 4) for loss in losses],
    }


def measure(small: bool) -> None:
    """All cells in processes of their own, so that one which does not fit costs only itself."""
    if not CUDA and not small:
        sys.exit("error: a CUDA device must be there; run it anywhere with --small")
    found: dict[str, dict[str, Any]] = {}
    for side, name in (("ours", "H"), ("reference", "H"), ("ours", "XL"), ("ours", "XXL")):
        command = [sys.executable, __file__, side, name, *(["--small"] if small else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"samples_per_s"')]
        ok = done.returncode == 0 and bool(lines)
        found[f"{side} {name}"] = json.loads(lines[-1]) if ok else {"failed": done.stderr[-400:]}
        print(side, name, found[f"{side} {name}"], flush=True)
    ours, theirs = found["ours H"], found["reference H"]
    ratio = ours.get("samples_per_s", 0.0) / theirs["samples_per_s"] if "failed" not in theirs else 0.0
    ran = all("failed" not in found[name] for name in ("ours H", "ours XL", "ours XXL"))
    if small:
        print(json.dumps({"name": "step_gpu small", "ratio": round(ratio, 4), "ran": ran}))
        sys.exit(0 if ran else 1)
    good = ran and (ours["mfu"] or 0.0) >= GOAL_MFU and ours["peak_gb"] <= GOAL_GB
    finish(
        "step_gpu", ratio, 1.0, good, cells=found, goal_mfu=GOAL_MFU, goal_gb=GOAL_GB, gpu=torch.cuda.get_device_name()
    )


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--small"]
    if arguments:
        print(json.dumps(cell(arguments[0], arguments[1], "--small" in sys.argv)), flush=True)
    else:
        measure("--small" in sys.argv)
