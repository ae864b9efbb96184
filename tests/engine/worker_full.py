"""Saves of which one rank's does not fit: python worker_full.py RUN WHO

Prints on rank 0 what stands in the folder at several moments, none of which is a save.
"""

import json
import logging
import resource
import sys
import time
from pathlib import Path

import torch
from small import BATCH, OPTIM, make, scratch

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine import hasher
from voxscale.engine.checkpoint import Position, verify
from voxscale.engine.config import EngineConfig, LoopConfig, micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.saver import Saver

run, who = Path(sys.argv[1]), int(sys.argv[2])
logging.basicConfig(format="%(message)s")
torch.set_num_threads(1)
dist.start()
scratch(run)
net = make("tiny")
weights = {key: p.detach().clone() for key, p in net.named_parameters()}
engine = start_engine(net, weights, EngineConfig(zero_stage=1), OPTIM, micro_batch(BATCH, 1, dist.world_size()))
folder = run / "checkpoints"


def names() -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def limit(size: int) -> None:
    """A real error of the system: no file may be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


hasher.LAZY_S = 1.0  # on a busy machine a hash may wait for so long, which is a minute otherwise
told = {}
with Saver(run, engine, OPTIM, LoopConfig(), {"model": "test", "contract": ""}, Position()) as saver:
    saver.save(Position(1, 1))
    saver.settle()
    told["before"] = names()
    if dist.rank() == who:
        limit(3000)
    saver.save(Position(2, 2))
    seen, began = set(), time.monotonic()
    # Nobody asks how the save went. What it began may be gone before it is first looked for.
    while names() != told["before"] or not seen:
        if time.monotonic() > began + (100 if names() != told["before"] else 15):
            break
        seen |= set(names()) - set(told["before"])
        time.sleep(0.002)
    told |= {"seen": sorted(seen), "failed": names()}
    limit(resource.RLIM_INFINITY)
    dist.barrier()
    saver.save(Position(3, 3))
    saver.finish()
    told["after"] = names()
    for name in told["after"]:
        verify(folder / name)
if dist.rank() == 0:
    print(json.dumps(told), flush=True)
dist.barrier()
dist.stop()
leave(0)
