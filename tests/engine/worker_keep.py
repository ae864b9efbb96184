"""Runs of one rank whose checkpoints are kept by two rules, or cannot be written: python worker_keep.py FOLDER"""

import ctypes
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from small import OPTIM, batches, make, objective

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.cli import leave
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EngineConfig, LoopConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train
from voxscale.errors import TrainingError

folder = Path(sys.argv[1])
logging.basicConfig(format="%(message)s")


def obey_permissions() -> None:
    """Give up what lets root write wherever it likes; threads that are started later have it no more either."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low words, then high words
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


def go(run: Path, loop: LoopConfig, close_at: int = -1, what: str = "") -> str:
    """Train on from the newest checkpoint; from a step on a folder of the run's is closed. Returns what went wrong."""
    net = make("tiny")
    found = checkpoint.latest(run)
    first = {key: p.detach().clone() for key, p in net.named_parameters()}
    weights = first if found is None else checkpoint.load_weights(found)
    engine = start_engine(net, weights, EngineConfig(zero_stage=1, precision="fp32"), OPTIM, loop.batch)
    start = Position() if found is None else checkpoint.restore(found, engine, OPTIM)
    left = [close_at - start.step]

    def closing(engine: torch.nn.Module, batch: Batch) -> tuple[Losses, int]:
        if left[0] == 0:
            while not (run / "checkpoints" / "step-00000003").is_dir():  # it is written while training goes on
                time.sleep(0.01)
            (run / "checkpoints" / what).chmod(0o555)
        left[0] -= 1
        return objective(engine, batch)

    about = {"model": "test", "contract": "none"}
    try:
        train("test", engine, batches("tiny", start.step, 1), closing, loop, OPTIM, run, start, about, None)
    except TrainingError as error:
        return str(error)
    finally:
        engine.destroy()
    return ""


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


torch.set_num_threads(1)
obey_permissions()
dist.start()
kept = folder / "kept"
both = LoopConfig(steps=8, batch=8, checkpoint_every=1, keep=2, keep_every=3)
told = {"kept_wrong": go(kept, both), "kept": names(kept)}

closed = folder / "closed"
loop = LoopConfig(steps=9, batch=8, checkpoint_every=3)
told |= {"closed_wrong": go(closed, loop, close_at=4), "closed": names(closed)}
(closed / "checkpoints").chmod(0o755)
told |= {"opened_wrong": go(closed, loop), "opened": names(closed)}

stuck, old = folder / "stuck", "step-00000003"
again = LoopConfig(steps=12, batch=8, checkpoint_every=3, keep=2)
told |= {"stuck_wrong": go(stuck, again, close_at=4, what=old), "stuck": names(stuck)}
for left in (stuck / "checkpoints").glob(f".{old}*"):
    left.chmod(0o755)
told |= {"freed_wrong": go(stuck, replace(again, steps=15)), "freed": names(stuck)}
print(json.dumps(told))
dist.stop()
leave(0)
