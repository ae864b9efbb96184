"""One training step of STU-Net-B against the reference class of medim: `make bench ONLY=step_stunet_b`.

Forward, cross-entropy and soft Dice at four resolutions, backward, SGD; 105 classes,
96^3, batch 1, one thread. `ours` is the engine's step at ZeRO stage 1: bf16 weights, fp32
master weights, the images by `network_input`, gradient norm and clipping. The reference steps
under bf16 autocast without any of that, with the same fused loss. `ratio` is the reference's
CPU seconds in its better memory layout over ours in our better one, medians of steps in alternation,
each cell in a process of its own. `bare` is our network in a loop like the reference's, bf16 weights
stepped as they are. First ours and the reference must give equal outputs in fp32.

With the argument `weights` the engine's step alone, with and without `engine.weights_last`, in processes that come one
after the other in turn, so that one is in memory at a time: `docs/results/bench/step_weights_last.json`.
`SIDE=64` takes smaller images.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import finish, paired_ratio
from medim.models.stu_net import STUNet as Reference
from torch import Tensor, nn

from voxscale.engine.config import EngineConfig, OptimConfig
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.layout import channels_last
from voxscale.engine.run import first_weights, network_input
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.models.stunet import STUNet, STUNetConfig
from voxscale.seed import torch_generator

GOAL = 1.5
ROUNDS = 3
SIDE = int(os.environ.get("SIDE", "96"))
HEADS = 4
CLIP = 12.0
SIDES = ("ours", "reference")
Cell = tuple[str, str]
"""Who steps, and the memory layout."""
WEIGHTS = ("channels_last", "weights_last")
"""Images channels-last alone, and weights too."""
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


def engine_step(layout: str) -> Callable[[Tensor, Tensor], object]:
    """The engine's training step, as `pretrain` and `finetune` make it."""
    config = STUNetConfig(width=32, depth=1, classes=105, heads=HEADS)
    model = STUNet(config)
    optim = OptimConfig(kind="sgd", lr=1e-3, momentum=0.99, weight_decay=3e-5)
    how = EngineConfig(zero_stage=1, clip=CLIP, weights_last="on" if layout == "weights_last" else "off")
    engine = start_engine(model, first_weights(model, 0), how, optim, 1)
    engine.train()
    set_learning_rate(engine, optim.lr)

    def run(x: Tensor, target: Tensor) -> None:
        outputs = engine(network_input(x, engine, layout != "contiguous"))
        engine.backward(deep_supervision(fused, outputs, target))
        engine.step()

    return run


def plain_step(ours: bool, layout: str) -> Callable[[Tensor, Tensor], object]:
    """The same in plain PyTorch: ours with bf16 weights, the reference under autocast."""
    model = make(ours).to(memory_format=LAYOUTS[layout])
    model = model.bfloat16() if ours else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)

    def run(x: Tensor, target: Tensor) -> None:
        x = channels_last(x) if layout == "channels_last" else x
        with torch.autocast("cpu", torch.bfloat16, enabled=not ours):
            outputs = list(model(x.bfloat16() if ours else x)[:HEADS])
        deep_supervision(fused, outputs, target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def step(side: str, layout: str) -> Callable[[], float]:
    """A training step that returns its CPU seconds."""
    made = engine_step(layout) if side == "ours" else plain_step(side == "bare", layout)
    x = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=torch_generator(1))
    target = torch.randint(0, 105, (1, SIDE, SIDE, SIDE), generator=torch_generator(2), dtype=torch.uint8)

    def run() -> float:
        began = time.process_time()
        made(x, target)
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
            while not (line := worker.stdout.readline()).startswith("{"):  # DeepSpeed speaks too
                assert line, f"{cell} ended"
            took, peaks[cell] = json.loads(line).values()
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
    cells = [(name, layout) for layout in LAYOUTS for name in SIDES]
    found = alternate_cells([*cells, ("bare", "channels_last")], ROUNDS)
    ratio, less, best = compare({cell: found[cell] for cell in cells})
    table = {f"{name} {layout}": values for (name, layout), values in found.items()}
    finish(
        "step_stunet_b", ratio, GOAL, ratio >= GOAL and less,
        cells=table, best=best, less_memory=less, fp32_difference=difference, threads=1,
    )  # fmt: skip


def measure_weights() -> None:
    """Time the engine's step with weights in both layouts and write the result."""
    rounds = [{layout: alternate_cells([("ours", layout)], ROUNDS) for layout in WEIGHTS} for _ in range(ROUNDS)]
    found = {layout: [cells[layout]["ours", layout] for cells in rounds] for layout in WEIGHTS}
    seconds = [[cell["cpu_s"] for cell in found[layout]] for layout in WEIGHTS]
    peaks = [max(cell["peak_gb"] for cell in found[layout]) for layout in WEIGHTS]
    ratio = paired_ratio(*seconds)
    finish("step_weights_last", ratio, 1.0, ratio >= 1 and peaks[1] <= peaks[0], cells=found, side=SIDE, threads=1)


def main() -> None:
    """Measure everything, or with two arguments one cell: a step for each line of the standard input."""
    if sys.argv[1:] == ["weights"]:
        measure_weights()
        return
    if len(sys.argv) != 3:
        measure()
        return
    torch.set_num_threads(1)
    once = step(sys.argv[1], sys.argv[2])
    for _ in sys.stdin:
        seconds = once()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"cpu_s": seconds, "peak_gb": peak}), flush=True)


if __name__ == "__main__":
    main()
