"""Two ranks start until one is lost: python worker_lost_start.py FOLDER WHO WHERE HOW PATIENCE SILENCE

WHO: the rank that is lost. WHERE: come (before it looks for the others), meet (it has, but joins no group), engine
(DeepSpeed's engine is being made), weights (they are being written into it). HOW: stop or kill (signals that it sends
itself), ask (SIGUSR1, which asks all to end), hang (it sleeps), fail (it meets an error of its own).
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as td
from small import CLIP, OPTIM, make
from torch import Tensor

from voxscale import dist
from voxscale.cli import guarded, leave
from voxscale.engine import watchdog
from voxscale.engine.config import EngineConfig, WatchConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.watchdog import RanksWatch
from voxscale.errors import DataError
from voxscale.log import setup
from voxscale.signals import ending

folder, who, where, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
watch = WatchConfig(patience_s=float(sys.argv[5]), silence_s=float(sys.argv[6]))
torch.set_num_threads(1)
watchdog.COME_S = 0.0


def lost(place: str) -> None:
    if (dist.rank(), place) != (who, where):
        return
    if who == 0:  # what others know of it is what its store told before it was gone
        time.sleep(2)
    (folder / "lost_at").write_text(str(time.time()))
    if how in ("stop", "kill", "ask"):
        os.kill(os.getpid(), {"stop": signal.SIGSTOP, "kill": signal.SIGKILL, "ask": signal.SIGUSR1}[how])
    if how == "fail":
        raise DataError("shard must be whole, not cut", "cut")
    time.sleep(600)


class Losing(Mapping[str, Tensor]):
    """Weights that are read when asked for, as those of a checkpoint are; one of them never comes."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        lost("weights")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


join, initialize = td.init_process_group, deepspeed.initialize


def joining(*arguments: Any, **options: Any) -> None:
    lost("meet")
    join(*arguments, **options)


def initializing(**options: Any) -> Any:
    lost("engine")
    return initialize(**options)


td.init_process_group, deepspeed.initialize = joining, initializing


def work() -> None:
    setup()
    lost("come")
    with ending("training"), RanksWatch(watch) as starting:
        net = make("tiny")
        starting.at("engine")
        weights = {key: p.detach().clone() for key, p in net.named_parameters()}
        start_engine(net, Losing(weights), EngineConfig(zero_stage=1, precision="fp32", clip=CLIP), OPTIM, 4)
        starting.at("begin")
    (folder / f"begun{dist.rank()}").touch()


leave(guarded(work))
