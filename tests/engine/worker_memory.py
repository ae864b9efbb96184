"""Train with less memory than a step needs: python worker_memory.py FOLDER [WHERE]

WHERE: start, layer, other, restore, teacher or snapshot.
With `start` the memory is too little for the engine of a second, larger model; with `layer` and `other` for a probe, in
a pass through the network or beside it; with the others for what a second, larger model needs beside its own states.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from small import OPTIM, batches, make

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.engine.checkpoint import Position, restore
from voxscale.engine.config import EmaConfig, EngineConfig, LoopConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.loop import train
from voxscale.engine.pieces import Piece

torch.set_num_threads(1)
dist.start()
net = make("tiny")
weights = {key: p.detach().clone() for key, p in net.named_parameters()}
engine = start_engine(net, weights, EngineConfig(zero_stage=1, precision="fp32"), OPTIM, 8)


def leave_room(megabytes: int) -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))


where = sys.argv[2] if len(sys.argv) > 2 else ""
if where == "start":
    large = torch.nn.Linear(8192, 4096, bias=False)  # 134 MB in fp32, of which ZeRO makes one flat tensor
    weights = {key: p.detach().clone() for key, p in large.named_parameters()}
    leave_room(100)
    start_engine(large, weights, EngineConfig(zero_stage=1, precision="fp32"), OPTIM, 8)

if where in ("restore", "teacher", "snapshot"):
    large = torch.nn.Linear(4096, 2048, bias=False)  # 34 MB in fp32
    weights = {key: p.detach().clone() for key, p in large.named_parameters()}
    other = start_engine(large, weights, EngineConfig(zero_stage=1, precision="fp32"), OPTIM, 8)
    about = {"position": {"step": 3}, "updates": 3, "model": "test", "contract": "none"}
    (Path(sys.argv[1]) / "state.json").write_text(json.dumps(about))
    if where == "snapshot":
        engine = other
    else:
        leave_room(30)
    if where == "restore":
        restore(Path(sys.argv[1]), other, OPTIM)
    if where == "teacher":
        Teacher(other, EmaConfig(), 9, torch.nn.Identity())


def objective(engine: torch.nn.Module, batch: Batch) -> tuple[Losses, int]:
    if where == "snapshot":
        return Losses({"mean": engine(torch.ones(8, 4096)).square().mean()}, {"mean": 1.0}, {}), 1
    # Six channels of 64 voxels cubed are 50 MB for 8 images; a step keeps several of that size.
    x = batch.voxels.repeat_interleave(11, 2).repeat_interleave(13, 3).repeat_interleave(16, 4)[..., :64, :64, :64]
    leave_room(200)
    return Losses({"mean": engine(x).square().mean()}, {"mean": 1.0}, {}), x.numel()


class Full:
    """Has no averages, and leaves no room for a snapshot."""

    def update(self, step: int) -> None:
        """Come after the step."""
        leave_room(60)

    def pieces(self) -> list[Piece]:
        """None."""
        return []

    def restore(self, checkpoint: Path) -> None:
        """Never called."""


class Probe:
    """Looks at more than there is memory for, before the first step."""

    levers = ("look at less (probe.patches, now 32)",)

    def due(self, step: int) -> bool:
        """Once."""
        return step == 0

    @torch.no_grad()
    def observe(self, step: int) -> dict[str, float]:
        """Look."""
        images = torch.zeros(8, 1, 64, 64, 64)
        leave_room(40)
        if where == "layer":
            engine(images)
        else:
            images.repeat(1, 6, 1, 1, 1)
        return {}


train(
    "test",
    engine,
    batches("tiny", 0, 1),
    objective,
    LoopConfig(steps=2, batch=8, checkpoint_every=1),
    OPTIM,
    Path(sys.argv[1]),
    Position(),
    {"model": "test", "contract": "none"},
    None,
    Full() if where == "snapshot" else None,
    observer=Probe() if where in ("layer", "other") else None,
)
