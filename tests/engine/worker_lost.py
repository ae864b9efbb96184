"""Two ranks train until one is lost: python worker_lost.py FOLDER HOW PATIENCE SILENCE

HOW: stop or kill (signals that rank 1 sends itself in a forward pass), hold (there rank 1 enters a call that lets none
of its threads run), hang (rank 1 reads data for ever), fail (rank 1 meets an error of its own), alone (rank 1 enters a
collective that rank 0 never does), apart (each enters one that the other does not).
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as td
from small import CLIP, OPTIM, batches, make, objective, scratch
from torch import nn

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.cli import guarded, leave
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EngineConfig, LoopConfig, WatchConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train
from voxscale.errors import DataError
from voxscale.log import setup

folder, how = Path(sys.argv[1]), sys.argv[2]
watch = WatchConfig(patience_s=float(sys.argv[3]), silence_s=float(sys.argv[4]))
groups: list[td.ProcessGroup] = []
torch.set_num_threads(1)


def lost(batch: Batch) -> None:
    if (dist.rank() != 1 and how != "apart") or batch.indices[0] < 3 * 8:
        return
    (folder / "lost_at").write_text(str(time.time()))
    if how in ("stop", "kill"):
        os.kill(os.getpid(), {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[how])
    if how == "hold":
        ctypes.PyDLL(None).sleep(600)
    if how in ("alone", "apart"):
        td.barrier(groups[dist.rank()])
    if how == "fail":
        raise DataError("shard must be whole, not cut", "cut")


def losing(engine: nn.Module, batch: Batch) -> tuple[Losses, int]:
    if how != "hang":
        lost(batch)
    return objective(engine, batch)


def reading() -> Iterator[Batch]:
    for batch in batches("tiny", 0, 1):
        if how == "hang" and dist.rank() == 1 and batch.indices[0] >= 3 * 8:
            (folder / "lost_at").write_text(str(time.time()))
            time.sleep(600)
        yield batch


def work() -> None:
    setup()
    dist.start()
    groups.extend(td.new_group([0, 1]) for _ in range(2))
    run = scratch(folder)
    net = make("tiny")
    weights = {key: p.detach().clone() for key, p in net.named_parameters()}
    engine = start_engine(net, weights, EngineConfig(zero_stage=1, precision="fp32", clip=CLIP), OPTIM, 4)
    loop = LoopConfig(steps=20, batch=8, watch=watch)
    train("test", engine, reading(), losing, loop, OPTIM, run, Position(), {"model": "test", "contract": "none"}, None)


leave(guarded(work))
