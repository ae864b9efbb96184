"""Train with less memory than a step needs: python worker_memory.py FOLDER [start]

With `start` the memory is too little for the engine of a second, larger model.
"""

import resource
import sys
from pathlib import Path

import torch
from small import OPTIM, batches, make

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EngineConfig, LoopConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train

torch.set_num_threads(1)
dist.start()
net = make("tiny")
weights = {key: p.detach().clone() for key, p in net.named_parameters()}
engine = start_engine(net, weights, EngineConfig(zero_stage=1, precision="fp32"), OPTIM, 8)


def leave_room(megabytes: int) -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))


if len(sys.argv) > 2:
    large = torch.nn.Linear(8192, 4096, bias=False)  # 134 MB in fp32, of which ZeRO makes one flat tensor
    weights = {key: p.detach().clone() for key, p in large.named_parameters()}
    leave_room(100)
    start_engine(large, weights, EngineConfig(zero_stage=1, precision="fp32"), OPTIM, 8)


def objective(engine: torch.nn.Module, batch: Batch) -> tuple[Losses, int]:
    # Six channels of 64 voxels cubed are 50 MB for 8 images; a step keeps several of that size.
    x = batch.voxels.repeat_interleave(11, 2).repeat_interleave(13, 3).repeat_interleave(16, 4)[..., :64, :64, :64]
    leave_room(200)
    return Losses({"mean": engine(x).square().mean()}, {"mean": 1.0}, {}), x.numel()


train(
    "test",
    engine,
    batches("tiny", 0, 1),
    objective,
    LoopConfig(steps=2, batch=8),
    OPTIM,
    Path(sys.argv[1]),
    Position(),
    {"model": "test", "contract": "none"},
    None,
)
