"""One training step of STU-Net-B against the reference class of medim: `make bench ONLY=step_stunet_b`.

Forward, cross-entropy and soft Dice at four resolutions, backward, SGD; 105 classes,
96^3, batch 1, one thread. Ours holds bf16 weights, the reference runs under bf16
autocast; `ratio` is the reference's CPU seconds in its better memory layout over ours in
our better one, medians of steps in alternation, each cell in a process of its own. First
both must give equal outputs in fp32. Both take our fused loss; the same is measured without
a loss, from given gradients of the outputs, and the better layouts once more with plain losses.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import finish
from medim.models.stu_net import STUNet as Reference
from torch import Tensor, nn

from voxscale.losses.cross_entropy import cross_entropy
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice import soft_dice_loss
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.models.stunet import STUNet, STUNetConfig
from voxscale.seed import torch_generator

GOAL = 1.5
ROUNDS, MORE_ROUNDS = 5, 3
SIDE = 96
HEADS = 4
SIDES = ("ours", "reference")
Cell = tuple[str, str, str]
"""Whose network, memory layout, and `loss`, `plain` (the loss by separate functions) or `gradients`."""
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


def fused(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, halves of the loss."""
    dice, cross = dice_and_cross_entropy(logits, target, pooled=True, background=True)
    return 0.5 * cross + 0.5 * dice


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """The same by one function for each."""
    dice = soft_dice_loss(logits, target, pooled=True, background=True)
    return 0.5 * cross_entropy(logits, target) + 0.5 * dice


def step(ours: bool, layout: str, kind: str) -> Callable[[], float]:
    """A training step that returns its CPU seconds."""
    form = LAYOUTS[layout]
    model = make(ours).to(memory_format=form)
    model = model.bfloat16() if ours else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)
    x = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=torch_generator(1)).contiguous(memory_format=form)
    x = x.bfloat16() if ours else x
    gradients = [torch.full((1, 105, *[SIDE >> n] * 3), 1e-6).bfloat16() for n in range(HEADS)]
    gradients = [] if kind != "gradients" else [g.contiguous(memory_format=form) for g in gradients]
    target = torch.randint(0, 105, (1, SIDE, SIDE, SIDE), generator=torch_generator(2), dtype=torch.uint8)

    def run() -> float:
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=not ours):
            outputs = list(model(x)[:HEADS])
        if kind == "gradients":
            torch.autograd.backward(outputs, gradients)
        else:
            deep_supervision(fused if kind == "loss" else plain, outputs, target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began

    return run


def alternate_cells(cells: list[Cell], rounds: int) -> dict[Cell, dict[str, Any]]:
    """Median CPU seconds and peak memory in GB of each cell, all stepping in turn, each in a process of its own."""
    workers = {
        cell: subprocess.Popen(
            [sys.executable, __file__, *cell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for cell in cells
    }
    seconds: dict[Cell, list[float]] = {cell: [] for cell in cells}
    peaks: dict[Cell, float] = {}
    for number in range(rounds + 1):  # the first one warms up
        for cell, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            took, peaks[cell] = json.loads(worker.stdout.readline())
            print(cell, number, took, peaks[cell], flush=True)
            if number:
                seconds[cell].append(took)
    for worker in workers.values():
        worker.stdin.close()
        assert worker.wait() == 0
    return {
        cell: {
            "cpu_s": round(statistics.median(seconds[cell]), 3),
            "steps": [round(s, 3) for s in seconds[cell]],
            "peak_gb": round(peaks[cell], 3),
        }
        for cell in cells
    }


def compare(found: dict[Cell, dict[str, Any]]) -> tuple[float, bool, dict[str, str]]:
    """Ratio of the better layouts, whether ours takes less memory in its own, and which these are."""
    best = {name: min((c for c in found if c[0] == name), key=lambda c: found[c]["cpu_s"]) for name in SIDES}
    ours, theirs = (found[best[name]] for name in SIDES)
    layouts = {name: cell[1] for name, cell in best.items()}
    return theirs["cpu_s"] / ours["cpu_s"], ours["peak_gb"] < theirs["peak_gb"], layouts


def measure() -> None:
    """Time all cells and write the result."""
    difference = check_equal()
    every = [(name, layout) for layout in LAYOUTS for name in SIDES]
    found = alternate_cells([(*cell, "loss") for cell in every], ROUNDS)
    ratio, less, best = compare(found)
    bare = alternate_cells([(*cell, "gradients") for cell in every], MORE_ROUNDS)
    bare_ratio, bare_less, bare_best = compare(bare)
    separate = alternate_cells([(name, best[name], "plain") for name in SIDES], MORE_ROUNDS)
    plain_ratio, _, _ = compare(separate)
    table = {f"{name} {layout} {kind}": values for (name, layout, kind), values in (found | bare | separate).items()}
    finish(
        "step_stunet_b", ratio, GOAL, ratio >= GOAL and less,
        cells=table, best=best, less_memory=less, from_gradients=round(bare_ratio, 4), from_gradients_best=bare_best,
        from_gradients_less_memory=bare_less, plain_loss=round(plain_ratio, 4), fp32_difference=difference, threads=1,
    )  # fmt: skip


def main() -> None:
    """Measure everything, or with three arguments one cell: a step for each line of the standard input."""
    if len(sys.argv) != 4:
        measure()
        return
    torch.set_num_threads(1)
    once = step(sys.argv[1] == "ours", sys.argv[2], sys.argv[3])
    for _ in sys.stdin:
        seconds = once()
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9]), flush=True)


if __name__ == "__main__":
    main()
