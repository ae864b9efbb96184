"""Training steps of the large STU-Nets on one GPU: `make bench ONLY=step_gpu`; anywhere small: add `--small`.

STU-Net-H at 128^3, batch 2, bf16, by the engine (AdamW, a real loss) and by medim's class under autocast with torch's
fused AdamW in both memory layouts, each in a process of its own: samples/s, MFU, peak memory. Then a few steps of 3.4
and 7.7 billion weights, of the largest with all states on the card where it has 130 GB, else in host memory. `ratio` is
ours over the reference's samples/s in its better layout; 0 where the reference does not fit. One cell alone is
`bench_step_gpu.py ours "H tuned" [--profile]`, with a table of its kernels. `--small` runs every line
of it on any machine and writes no result file. Every cell's line is printed as it comes; `--limit` seconds end a cell.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

if "XXL" in sys.argv:  # its pieces are large: what lies free between them was 6 GB, which it needs
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

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
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.models.build import build
from voxscale.models.stunet import CHANNEL_FACTORS, SIZES, STUNetConfig
from voxscale.seed import torch_generator

GOAL_MFU, GOAL_GB = 0.45, 48.0
CLASSES, HEADS = (5 if "--small" in sys.argv else 105), 4
CUDA = torch.cuda.is_available()
LIMIT = float(sys.argv[sys.argv.index("--limit") + 1]) if "--limit" in sys.argv else 900.0
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
    keep: bool = False
    tune: bool = False


def jobs(small: bool) -> dict[str, Job]:
    """All cells of ours by name; the reference does the first."""
    if small:
        sizes, side, batch, steps = {"H": (2, 3), "XL": (2, 4), "XXL": (3, 4)}, 64, 1, 1
    else:
        sizes, side, batch, steps = SIZES, 128, 2, 10
    plain, all_stages = EngineConfig(zero_stage=1), (0, 1, 2, 3, 4, 5)
    # Stage 3 makes the fp32 gradients of a step piece by piece, so 16 bytes a weight are enough.
    large = CUDA and torch.cuda.get_device_properties(0).total_memory > 130e9
    largest = EngineConfig(zero_stage=3) if large else EngineConfig(zero_stage=3, offload="all")
    return {
        "H": Job(*sizes["H"], side, batch, steps, plain, (0, 1)),
        "H tuned": Job(*sizes["H"], side, batch, steps, plain, (0, 1), tune=True),
        "H tuned kept": Job(*sizes["H"], side, batch, steps, plain, (0, 1), keep=True, tune=True),
        "H tuned whole": Job(*sizes["H"], side, batch, steps, plain, tune=True),
        "H last": Job(*sizes["H"], side, batch, steps, plain, tune=True),
        "XL": Job(*sizes["XL"], side, 1, min(steps, 3), EngineConfig(zero_stage=3), all_stages),
        # At 128^3 what the steps themselves hold would not fit beside 123 GB of states on a card of 150 GB.
        "XXL": Job(*sizes["XXL"], 64, 1, min(steps, 3), largest, all_stages),
    }


def draw(model: nn.Module) -> None:
    """First values, drawn on the device where there is one: billions of them take a minute on a CPU."""
    model.to_empty(device="cpu")
    for p in model.parameters():
        value = torch.randn(p.shape, device=DEVICE) * (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else torch.zeros(p.shape)
        p.data.copy_(value)
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm3d) and module.affine:
            nn.init.ones_(module.weight)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, halves of the loss."""
    dice = soft_dice_loss(logits, target, pooled=True, background=True)
    return 0.5 * cross_entropy(logits, target) + 0.5 * dice


def our_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The same in one pass."""
    return 0.5 * sum(dice_and_cross_entropy(logits, target, pooled=True, background=True))


def our_step(job: Job) -> tuple[Callable[[Tensor, Tensor], float], float]:
    """A step of the engine that returns its loss, and the operations of one."""
    config = STUNetConfig(
        width=job.width,
        depth=job.depth,
        classes=CLASSES,
        heads=HEADS,
        checkpoint_stages=job.stages,
        keep_convolutions=job.keep,
    )
    model = build(config, "meta")
    draw(model)
    flops = float(BACKWARD * model.flops([job.side] * 3) * job.batch)
    # In bf16 the engine replaces the values of the model, so its fp32 ones need no copy.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    engine = start_engine(model, weights, job.engine, OptimConfig(lr=1e-4), job.batch)

    def step(x: Tensor, target: Tensor) -> float:
        images = channels_last(x.bfloat16())
        loss = deep_supervision(our_loss, engine(images), target)
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    return step, flops


def reference_step(job: Job, last: bool) -> tuple[Callable[[Tensor, Tensor], float], float]:
    """The same of medim's class under autocast; operations are those of ours, as both compute the same function."""
    from medim.models.stu_net import STUNet as Reference

    dims = [job.width * factor for factor in CHANNEL_FACTORS]
    made: nn.Module = Reference(
        1, CLASSES, [job.depth] * 6, dims, [[2, 2, 2]] * 5, [[3, 3, 3]] * 6, enable_deep_supervision=True
    )
    made = made.to(DEVICE, memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    ours = build(STUNetConfig(width=job.width, depth=job.depth, classes=CLASSES, heads=HEADS), "meta")
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, fused=True)

    def step(x: Tensor, target: Tensor) -> float:
        x = channels_last(x) if last else x
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
    torch.backends.cudnn.benchmark = job.tune
    step, flops = our_step(job) if side == "ours" else reference_step(job, name.endswith("last"))
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
    if "--profile" in sys.argv and CUDA:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            step(x, target)
            torch.cuda.synchronize()
        print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=90))
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


def speed(found: dict[str, Any]) -> float:
    """Samples a second; 0 if the cell failed."""
    return found.get("samples_per_s", 0.0)


def run(command: list[str]) -> dict[str, Any]:
    """A cell in a process of its own, ended at the limit."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"samples_per_s"')]
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"failed": done.stderr[-400:]}


def measure(small: bool) -> None:
    """All cells in processes of their own, so that one which does not fit costs only itself."""
    if not CUDA and not small:
        sys.exit("error: a CUDA device must be there; run it anywhere with --small")
    found: dict[str, dict[str, Any]] = {}
    sides = [("ours", "H tuned kept"), ("reference", "H tuned"), ("ours", "XL"), ("ours", "XXL")]  # what matters first
    sides += [("ours", "H tuned"), ("reference", "H last"), ("ours", "H tuned whole"), ("ours", "H")]
    for side, name in sides:
        command = [sys.executable, __file__, side, name, *(["--small"] if small else [])]
        found[f"{side} {name}"] = run(command)
        print(side, name, json.dumps(found[f"{side} {name}"]), flush=True)
    ours = max((found[f"ours {name}"] for name in jobs(small) if name[0] == "H" and name != "H last"), key=speed)
    theirs = max((found["reference H tuned"], found["reference H last"]), key=speed)
    ratio = speed(ours) / speed(theirs) if speed(theirs) else 0.0
    ran = all("failed" not in found[name] for name in ("ours H", "ours XL", "ours XXL"))
    if small:
        print(json.dumps({"name": "step_gpu small", "ratio": round(ratio, 4), "ran": ran}))
        sys.exit(0 if ran else 1)
    good = ran and speed(theirs) > 0 and (ours["mfu"] or 0.0) >= GOAL_MFU and ours["peak_gb"] <= GOAL_GB
    finish(
        "step_gpu", ratio, 1.0, good, cells=found, goal_mfu=GOAL_MFU, goal_gb=GOAL_GB, gpu=torch.cuda.get_device_name()
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("--"):
        print(json.dumps(cell(arguments[0], arguments[1], "--small" in sys.argv)), flush=True)
    else:
        measure("--small" in sys.argv)
