"""Train with planted bad samples, going on from the folder's checkpoint if there is one.

python worker_rollback.py RUN CASE BAD   (a case: stage-precision-offload-accumulate; BAD: JSON, sample -> factor)
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from small import BATCH, CLIP, OPTIM, batches, make, objective, scratch

from voxscale import dist
from voxscale.batch import Batch
from voxscale.cli import leave
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import (
    EmaConfig,
    EngineConfig,
    GuardConfig,
    LoopConfig,
    ProfileConfig,
    TrackerConfig,
    micro_batch,
)
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.loop import train
from voxscale.engine.run import find_checkpoint
from voxscale.engine.state import read_weights
from voxscale.engine.tracker import Tracker
from voxscale.errors import TrainingError

run = Path(sys.argv[1])
stage, precision, offload, accumulate = sys.argv[2].split("-")
bad = {int(index): float(factor) for index, factor in json.loads(sys.argv[3]).items()}
torch.set_num_threads(1)
dist.start()
scratch(run)
loop = LoopConfig(
    steps=12,
    batch=BATCH,
    log_every=1,
    checkpoint_every=2,
    keep=9,
    guard=GuardConfig(window=4, sigma=10, in_a_row=2),
    profile=ProfileConfig(start=2, steps=1),
)
config = EngineConfig(
    zero_stage=int(stage), precision=precision, offload=offload, accumulate=int(accumulate), clip=CLIP
)
found = find_checkpoint(run)
net = make("tiny")
weights = {key: p.detach().clone() for key, p in net.named_parameters()}
if found is not None:
    weights = checkpoint.load_weights(found)
engine = start_engine(net, weights, config, OPTIM, micro_batch(BATCH, config.accumulate, dist.world_size()))
start = Position() if found is None else checkpoint.restore(found, engine, OPTIM)


class Watching(Teacher):
    """Tells what the engine and the teacher hold after going back."""

    def restore(self, checkpoint_: Path) -> None:
        super().restore(checkpoint_)
        if dist.rank() == 0:
            print(f"restored {checkpoint_.name}", flush=True)
        mine = dict(self.averages())
        saved = checkpoint.stored(checkpoint_, "ema")
        assert all(torch.equal(mine[name], saved[name]) for name in saved)
        saved = checkpoint.load_weights(checkpoint_)
        assert all(torch.equal(value, saved[name]) for name, value in read_weights(self._engine))


teacher = Watching(engine, EmaConfig(start=0.5, end=0.9), loop.steps, make("tiny"))
if found is not None:
    teacher.restore(found)
tracker = Tracker(run, TrackerConfig(wandb=False), {}, start.step) if dist.rank() == 0 else None


def waited_for() -> Iterator[Batch]:
    """Batches, of which the fourth micro-batch of a run comes late."""
    for number, batch in enumerate(batches("tiny", start.step, config.accumulate, bad)):
        if number == 3:
            time.sleep(0.2)
        yield batch


about = {"model": "test", "contract": "none"}
try:
    train("test", engine, waited_for(), objective, loop, OPTIM, run, start, about, tracker, teacher, flops=1e6)
except TrainingError as error:
    print(f"stopped: {error}", flush=True)
    leave(3)
final = dict(read_weights(engine))
if dist.rank() == 0:
    torch.save(final, run / "final.pt")
dist.barrier()
dist.stop()
leave(0)
