"""A run of several ranks of which one waits for data, one is slow in its forward pass, one holds more memory.

The loss is that of all ranks' samples, as those of the stages are, so the others wait for the slow one in theirs.

python worker_meter.py RUN
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small import BATCH, OPTIM, batches, make, objective, scratch

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.cli import leave
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EngineConfig, LoopConfig, TrackerConfig, micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train
from voxscale.engine.meter import Meter
from voxscale.engine.tracker import Tracker
from voxscale.samples import all_samples

run = Path(sys.argv[1])
torch.set_num_threads(1)
dist.start()
scratch(run)
last = dist.world_size() - 1
ballast = torch.ones(125_000_000 if dist.rank() == last else 1)  # 0.5 GB
calls: list[int] = []


def line(own: Meter, *given: Any, inner: Any = Meter.line) -> dict[str, Any]:
    before = dist.entered()
    row = inner(own, *given)
    calls.append(dist.entered() - before)
    return row


Meter.line = line


def late() -> Iterator[Batch]:
    for batch in batches("tiny", 0, 1):
        if dist.rank() == last:
            time.sleep(0.2)
        yield batch


def slow(engine: torch.nn.Module, batch: Batch) -> tuple[Losses, int]:
    if dist.rank() == 0:
        time.sleep(0.5)  # of which the other, later by 0.2 s, waits for 0.3 s
    losses, voxels = objective(engine, batch)
    over = all_samples()
    (whole,) = over.total(losses.terms["mse"])
    return replace(losses, terms={"mse": whole / over.ranks}), voxels


loop = LoopConfig(steps=4, batch=BATCH, log_every=2, checkpoint_every=4)
net = make("tiny")
weights = {key: p.detach().clone() for key, p in net.named_parameters()}
config = EngineConfig(zero_stage=1, precision="fp32")
engine = start_engine(net, weights, config, OPTIM, micro_batch(BATCH, 1, dist.world_size()))
tracker = Tracker(run, TrackerConfig(wandb=False), {}, 0) if dist.rank() == 0 else None
train("test", engine, late(), slow, loop, OPTIM, run, Position(), {"model": "test", "contract": "none"}, tracker)
print(json.dumps({"calls": calls, "ballast": float(ballast[-1])}), flush=True)
dist.barrier()
dist.stop()
leave(0)
