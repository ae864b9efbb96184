"""Two ranks train until one is lost: python worker_lost.py FOLDER HOW PATIENCE SILENCE

HOW: stop or kill (signals that rank 1 sends itself in a forward pass), hold (there rank 1 enters a call that lets none
of its threads run), hang (rank 1 reads data for ever), fail (rank 1 meets an error of its own), alone (rank 1 enters a
collective that rank 0 never does), apart (each enters one that the other does not), slowly (hang, and both take longer
to say so than a rank may be silent), suspend (both are stopped for longer than that, and go on one after the other).
"""

import ctypes
import logging
import os
import signal
import subprocess
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
pids: list[object] = []
torch.set_num_threads(1)


def lost(batch: Batch) -> None:
    if (dist.rank() != 1 and how != "apart") or batch.indices[0] < 3 * 8:
        return
    (folder / "lost_at").write_text(str(time.time()))
    if how == "suspend" and batch.indices[0] < 4 * 8:
        time.sleep(2)  # each has heard of the other by then
        stopped = f"kill -STOP {pids[0]} {pids[1]}; sleep {3 * watch.silence_s}"
        subprocess.Popen(["sh", "-c", f"{stopped}; kill -CONT {pids[0]}; sleep 0.5; kill -CONT {pids[1]}"])
        time.sleep(1)  # within which it comes
    if how in ("stop", "kill"):
        os.kill(os.getpid(), {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[how])
    if how == "hold":
        ctypes.PyDLL(None).sleep(600)
    if how in ("alone", "apart"):
        td.barrier(groups[dist.rank()])
    if how == "fail":
        raise DataError("shard must be whole, not cut", "cut")


def losing(engine: nn.Module, batch: Batch) -> tuple[Losses, int]:
    if how not in ("hang", "slowly"):
        lost(batch)
    return objective(engine, batch)


def reading() -> Iterator[Batch]:
    for batch in batches("tiny", 0, 1):
        if how in ("hang", "slowly") and dist.rank() == 1 and batch.indices[0] >= 3 * 8:
            (folder / "lost_at").write_text(str(time.time()))
            time.sleep(600)
        yield batch


def late(record: logging.LogRecord) -> bool:
    time.sleep(1.5 * watch.silence_s if "rank lost" in record.msg else 0)
    return True


def work() -> None:
    setup()
    if how == "slowly":
        logging.getLogger("voxscale").addFilter(late)
    dist.start()
    pids.extend(dist.gather(os.getpid()))
    groups.extend(td.new_group([0, 1]) for _ in range(2))
    run = scratch(folder)
    net = make("tiny")
    weights = {key: p.detach().clone() for key, p in net.named_parameters()}
    engine = start_engine(net, weights, EngineConfig(zero_stage=1, precision="fp32", clip=CLIP), OPTIM, 4)
    loop = LoopConfig(steps=20, batch=8, watch=watch)
    train("test", engine, reading(), losing, loop, OPTIM, run, Position(), {"model": "test", "contract": "none"}, None)


leave(guarded(work))
