"""One training step of STU-Net-B against the reference class of medim: `make bench ONLY=step_stunet_b`.

Forward, backward from given gradients of the four weighted outputs, SGD; 105
classes, 96^3, batch 1. Ours holds bf16 weights, the reference runs under bf16
autocast; `ratio` is the reference's CPU seconds in its better memory layout over
ours in our better one. First both must give equal outputs in fp32.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from harness import finish
from medim.models.stu_net import STUNet as Reference
from torch import nn

from voxscale.models.stunet import STUNet, STUNetConfig
from voxscale.seed import torch_generator

GOAL = 1.5
ROUNDS = 1
SIDE = 96
HEADS = 4
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def make(ours: bool, heads: int = HEADS) -> nn.Module:
    """Either network with the strides (2, 2, 2) throughout."""
    if ours:
        return STUNet(STUNetConfig(width=32, depth=1, classes=105, heads=heads))
    dims = [32, 64, 128, 256, 512, 512]
    return Reference(1, 105, [1] * 6, dims, [[2, 2, 2]] * 5, [[3, 3, 3]] * 6, enable_deep_supervision=True)


def check_equal() -> float:
    """Largest difference of any fp32 output with the same weights on 64^3."""
    own, theirs = make(True, heads=5).eval(), make(False).eval()
    theirs.load_state_dict(own.state_dict(), strict=True)
    x = torch.randn(1, 1, 64, 64, 64, generator=torch_generator(0))
    with torch.no_grad():
        difference = max((a - b).abs().max().item() for a, b in zip(own(x), theirs(x), strict=True))
    assert difference <= 1e-4, f"outputs must be equal to 1e-4, not {difference}"
    return difference


def step(ours: bool, layout: str) -> Callable[[], float]:
    """A training step that returns its CPU seconds."""
    form = LAYOUTS[layout]
    model = make(ours).to(memory_format=form)
    model = model.bfloat16() if ours else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)
    x = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=torch_generator(1)).contiguous(memory_format=form)
    x = x.bfloat16() if ours else x
    gradients = [torch.full((1, 105, *[SIDE >> n] * 3), 1e-6).bfloat16() for n in range(HEADS)]
    gradients = [g.contiguous(memory_format=form) for g in gradients]

    def run() -> float:
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=not ours):
            outputs = model(x)[:HEADS]
        torch.autograd.backward(outputs, gradients)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began

    return run


def measure() -> None:
    """Time all four in turn, each in a process of its own that also tells its peak memory."""
    difference = check_equal()
    cells = [(name, layout) for layout in LAYOUTS for name in ("ours", "reference")]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {cell: [] for cell in cells}
    for _ in range(ROUNDS):
        for cell in cells:
            done = subprocess.run([sys.executable, __file__, *cell], check=True, capture_output=True, text=True)
            found[cell].append(tuple(json.loads(done.stdout.splitlines()[-1])))
            print(cell, found[cell][-1], flush=True)
    seconds = {cell: statistics.median(s for s, _ in found[cell]) for cell in cells}
    peaks = {cell: max(peak for _, peak in found[cell]) for cell in cells}
    best = {name: min(LAYOUTS, key=lambda layout: seconds[name, layout]) for name in ("ours", "reference")}
    ratio = seconds["reference", best["reference"]] / seconds["ours", best["ours"]]
    less = peaks["ours", best["ours"]] < peaks["reference", best["reference"]]
    table = {
        f"{name} {layout}": {"cpu_s": round(seconds[name, layout], 2), "peak_gb": round(peaks[name, layout], 2)}
        for name, layout in cells
    }
    finish(
        "step_stunet_b", ratio, GOAL, ratio >= GOAL and less,
        cells=table, best=best, less_memory=less, fp32_difference=difference, rounds=ROUNDS,
    )  # fmt: skip


def main() -> None:
    """Measure everything, or with two arguments one network in one layout: the second step, and peak memory in GB."""
    if len(sys.argv) != 3:
        measure()
        return
    torch.set_num_threads(1)
    once = step(sys.argv[1] == "ours", sys.argv[2])
    once()
    seconds = once()
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))


if __name__ == "__main__":
    main()
