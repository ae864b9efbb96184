"""Train with planted bad samples, going on from the folder's checkpoint if there is one.

python worker_rollback.py RUN CASE BAD [MORE]

A case: stage-precision-offload-accumulate. BAD: JSON, sample -> factor. MORE: JSON, `keep` and `in_a_row` as in the
loop's config, `stop`: step in which SIGTERM comes, `full`: finished steps whose save finds the disk full, `within`:
those while whose save is written SIGTERM comes, `damaged`: finished step whose checkpoint is damaged in the next step.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from small import BATCH, CLIP, OPTIM, batches, make, objective, scratch

from voxscale import dist
from voxscale.batch import Batch
from voxscale.cli import AGAIN, leave
from voxscale.engine import checkpoint, pieces, saver
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
from voxscale.errors import PreemptedError, TrainingError
from voxscale.signals import ending

run = Path(sys.argv[1])
stage, precision, offload, accumulate = sys.argv[2].split("-")
more = {"keep": 9, "in_a_row": 2, "stop": -1, "full": [], "within": [], "damaged": None} | json.loads(
    sys.argv[4] if len(sys.argv) > 4 else "{}"
)
bad = {int(index): float(factor) for index, factor in json.loads(sys.argv[3]).items()}
torch.set_num_threads(1)
dist.start()
scratch(run)
loop = LoopConfig(
    steps=12,
    batch=BATCH,
    log_every=1,
    checkpoint_every=2,
    keep=more["keep"],
    guard=GuardConfig(window=4, sigma=10, in_a_row=more["in_a_row"]),
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


def save(own: saver.Saver, position: Position, inner: Callable[..., None] = saver.Saver.save) -> None:
    """Save with room for small files alone, if that is wanted: a real error of the system."""
    most = 8000 if position.step in more["full"] else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    inner(own, position)


saver.Saver.save = save


def write(path: Path, *data: Any, inner: Callable[..., None] = pieces.write_past_cache) -> None:
    """Write a file, which this process is asked to end before."""
    if any(f"step-{step:08d}" in str(path) for step in more["within"]):
        os.kill(os.getpid(), signal.SIGTERM)
    inner(path, *data)


pieces.write_past_cache = write


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
        if start.step + number // config.accumulate == more["stop"]:
            os.kill(os.getpid(), signal.SIGTERM)
        now = start.step + number // config.accumulate
        if dist.rank() == 0 and more["damaged"] == now - 1:
            damage(checkpoint.folder_of(run, more["damaged"]))
        yield batch


def damage(folder: Path) -> None:
    while not folder.exists():  # it is still being written
        time.sleep(0.01)
    file = min(folder.glob("state-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


about = {"model": "test", "contract": "none"}
try:
    with ending("test"):
        train("test", engine, waited_for(), objective, loop, OPTIM, run, start, about, tracker, teacher, flops=1e6)
except TrainingError as error:
    print(f"stopped: {error}", flush=True)
    leave(3)
except PreemptedError as error:
    print(f"ended: {error}", flush=True)
    leave(AGAIN)
final = dict(read_weights(engine))
if dist.rank() == 0:
    torch.save(final, run / "final.pt")
dist.barrier()
dist.stop()
leave(0)
