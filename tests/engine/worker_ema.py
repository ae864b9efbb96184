"""Train with a teacher, with a planted bad step; each rank compares it with an average of whole weights.

python worker_ema.py FOLDER CASES [FROM]   (case: stage-precision-offload-accumulate, then -last with weights that lie
channels-last; FROM: checkpoint to go on from, in which CASE stands for the case)
"""

import json
import sys
from pathlib import Path

import torch
from small import BATCH, CLIP, OPTIM, batches, make, objective, scratch

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EmaConfig, EngineConfig, LoopConfig, micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.ema import Teacher, momentum
from voxscale.engine.loop import train
from voxscale.engine.state import read_weights

folder, cases = Path(sys.argv[1]), sys.argv[2].split(",")
origin = sys.argv[3] if len(sys.argv) > 3 else ""
torch.set_num_threads(1)
dist.start()
STEPS, EMA = 8, EmaConfig(start=0.5, end=0.9)
BAD = {4 * BATCH + 1: float("nan")}


class Whole(Teacher):
    """Also averages whole weights, as one process would."""

    def update(self, step: int) -> None:
        super().update(step)
        m = momentum(EMA, step, STEPS)
        for name, value in read_weights(self._engine):
            expected[name] = expected[name] * m + value.cpu() * (1 - m)
        steps.append(step)


for case in cases:
    run = scratch(folder / case)
    came_from = Path(origin.replace("CASE", case)) if origin else None
    stage, precision, offload, accumulate, *last = case.split("-")
    how = {"zero_stage": int(stage), "precision": precision, "offload": offload, "accumulate": int(accumulate)}
    config = EngineConfig(**how, weights_last="on" if last else "off", clip=CLIP)
    loop = LoopConfig(steps=STEPS, batch=BATCH, log_every=1, checkpoint_every=3, keep=9)
    net = make("tiny")
    weights = {key: p.detach().clone() for key, p in net.named_parameters()}
    if came_from is not None:
        weights = checkpoint.load_weights(came_from)
    engine = start_engine(net, weights, config, OPTIM, micro_batch(BATCH, config.accumulate, dist.world_size()))
    start = Position() if came_from is None else checkpoint.restore(came_from, engine, OPTIM)
    teacher = Whole(engine, EMA, STEPS, make("tiny"))
    if came_from is not None:
        teacher.restore(came_from)
    expected, steps = {name: value.cpu() for name, value in teacher.averages()}, []
    source = batches("tiny", start.step, config.accumulate, BAD)
    train("test", engine, source, objective, loop, OPTIM, run, start, {"model": "t", "contract": "n"}, None, teacher)
    teacher.refresh()
    found = dict(teacher.averages())
    working = {name: p.detach() for name, p in teacher.module.named_parameters()}
    row = {
        "case": case,
        "steps": steps,
        "error": max(float((found[name].cpu() - expected[name]).abs().max()) for name in expected),
        "rounded": all(torch.equal(working[name], found[name].to(working[name].dtype)) for name in found),
        "frozen": not any(p.requires_grad for p in teacher.module.parameters()) and not teacher.module.training,
        "dtype": str(next(teacher.module.parameters()).dtype),
    }
    print(json.dumps(row), flush=True)
    if dist.rank() == 0:
        torch.save({name: value.clone() for name, value in found.items()}, run / "ema.pt")
    engine.destroy()
dist.barrier()
dist.stop()
leave(0)
