"""Steps with planted NaN and planted spikes at every ZeRO stage; each rank prints what changed in which step.

python worker_guard.py FOLDER MODEL CASES   (a case: stage-precision-offload-accumulate)
"""

import json
import sys
from pathlib import Path

import torch
from small import BATCH, CLIP, OPTIM, batches, make, objective, scratch

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import EngineConfig, GuardConfig, micro_batch
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.guard import Guard
from voxscale.engine.optim import moment_names
from voxscale.engine.state import pieces, updates
from voxscale.engine.types import Engine

folder, name, cases = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
torch.set_num_threads(1)
dist.start()
# Sample 33 (step 4) is in the last rank's half for two ranks of which each has four: 32 to 35 and 36 to 39.
BAD = {4 * BATCH + 1: float("nan"), 6 * BATCH + 5: 1e4}


def state(engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    held = {piece.key: piece.value.detach().clone() for piece in pieces(engine, moment_names(OPTIM))}
    working = {n: getattr(p, "ds_tensor", p).detach().clone() for n, p in engine.module.named_parameters()}
    return held, working, updates(engine)


def statistics(engine: Engine) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in engine.module.buffers()]


for case in cases:
    run = scratch(folder / case)
    stage, precision, offload, accumulate = case.split("-")
    config = EngineConfig(
        zero_stage=int(stage), precision=precision, offload=offload, accumulate=int(accumulate), clip=CLIP
    )
    net = make(name)
    weights = {key: p.detach().clone() for key, p in net.named_parameters()}
    engine = start_engine(net, weights, config, OPTIM, micro_batch(BATCH, config.accumulate, dist.world_size()))
    guard = Guard(GuardConfig(window=4, sigma=10), engine, run, {})
    source = batches(name, 0, config.accumulate, BAD)
    rows = []

    for step in range(9):
        set_learning_rate(engine, 1e-2)
        before, seen = state(engine), statistics(engine)
        guard.begin()
        parts = []
        for part in range(config.accumulate):
            engine.set_gradient_accumulation_boundary(part == config.accumulate - 1)
            batch = next(source)
            losses, _ = objective(engine, batch)
            engine.backward(losses.total)
            parts.append((batch.indices, float(losses.total.detach())))
        guard.hear([loss for _, loss in parts])
        engine.step()
        good = guard.settle(step, parts)
        after = state(engine)
        same = all(torch.equal(a[k], b[k]) for a, b in zip(before[:2], after[:2], strict=True) for k in a)
        finite = all(bool(value.isfinite().all()) for part in after[:2] for value in part.values())
        row = {"good": good, "same": same, "counted": after[2] - before[2], "finite": finite}
        rows.append(row | {"unseen": [torch.equal(*pair) for pair in zip(seen, statistics(engine), strict=True)]})
    print(json.dumps({"case": case, "rows": rows}), flush=True)
    engine.destroy()
dist.barrier()
dist.stop()
leave(0)
