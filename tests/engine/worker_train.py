"""One rank of a small training run.

python worker_train.py RUN STEPS TOTAL STAGE PRECISION OPTIMIZER BATCH
    [NAN_SAMPLE [FULL_DISK_STEP [FULL_DISK_RANK [WIDTH [batch]]]]]
"""

import contextlib
import itertools
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from voxscale import dist, seed
from voxscale.batch import Batch, Losses, Patch, collate
from voxscale.cli import guarded, leave
from voxscale.engine import checkpoint, saver
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EngineConfig, LoopConfig, OptimConfig, TrackerConfig, micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train
from voxscale.engine.state import read_weights
from voxscale.engine.tracker import Tracker


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1),
        nn.BatchNorm3d(width) if batch_norm else nn.InstanceNorm3d(width, affine=True),
        nn.LeakyReLU(),
        nn.Conv3d(width, 5, 3, padding=1),
        nn.GroupNorm(1, 5),
        nn.Conv3d(5, 1, 1),
    )


def sample(index: int) -> Patch:
    values = seed.rng(0, "sample", index).normal(size=(6, 5, 4)).astype(np.float32)
    return Patch(values, None, np.eye(3, 4), (1.0, 0.0), 0, index, "x")


def batches(start: int, micro: int, batch: int) -> Iterator[Batch]:
    for step in itertools.count(start):
        first = step * batch + dist.rank() * micro
        yield collate([sample(i) for i in range(first, first + micro)])


def objective(engine: nn.Module, batch: Batch) -> tuple[Losses, int]:
    x = batch.voxels
    planted = float("nan") if nan_at >= 0 and nan_at in batch.indices else 1.0
    out = engine(x.to(next(engine.parameters()).dtype)).float()
    return Losses({"mse": ((out - x.cumsum(-1)) ** 2).mean() * planted}, {"mse": 1.0}, {}), x.numel()


run, steps, total, stage, precision, kind, batch = sys.argv[1:8]
nan_at = int(sys.argv[8]) if len(sys.argv) > 8 else -1
full_at = int(sys.argv[9]) if len(sys.argv) > 9 else -1
full_rank = int(sys.argv[10]) if len(sys.argv) > 10 else 0
width = int(sys.argv[11]) if len(sys.argv) > 11 else 6
batch_norm = len(sys.argv) > 12
torch.set_num_threads(1)
if full_at >= 0 and dist.rank() == full_rank:
    save = saver.Saver.save

    def fill_up(own: Any, position: Position) -> None:
        """Limit the size of files from one save to the next, at what the metrics have: a real error of the system."""
        rows = Path(run) / "metrics.jsonl"
        size = rows.stat().st_size if dist.rank() == 0 else 8000
        full = position.step == full_at
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if full else resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save(own, position)

    saver.Saver.save = fill_up


class CutError(Exception):
    pass


def until(source: Iterator[Batch], n: int) -> Iterator[Batch]:
    yield from itertools.islice(source, n)
    raise CutError


def work() -> None:
    dist.start()
    folder = Path(run)
    loop = LoopConfig(steps=int(total), batch=int(batch), log_every=1, checkpoint_every=3)
    optim = OptimConfig(kind=kind, lr=1e-2, momentum=0.9, weight_decay=1e-2)
    config = EngineConfig(zero_stage=int(stage), precision=precision, channels_last="off", clip=1.0)
    net = model()
    found = checkpoint.latest(folder)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.randn(p.shape, generator=seed.torch_generator(1, name)) * 0.3)
    weights = checkpoint.load_weights(found) if found else {n: p.detach().clone() for n, p in net.named_parameters()}
    micro = micro_batch(loop.batch, 1, dist.world_size())
    engine = start_engine(net, weights, config, optim, micro)
    start = checkpoint.restore(found, engine, optim) if found else Position()
    tracker = Tracker(folder, TrackerConfig(wandb=False), {}, start.step) if dist.rank() == 0 else None
    cut = until(batches(start.step, micro, loop.batch), int(steps) - start.step)
    about = {"model": "test", "contract": "none"}
    try:
        with contextlib.suppress(CutError):
            train("test", engine, cut, objective, loop, optim, folder, start, about, tracker)
        final = dict(read_weights(engine))
        save_file(
            {n: b.clone() for n, b in engine.module.named_buffers()}, folder / f"buffers-{dist.rank()}.safetensors"
        )
        if dist.rank() == 0:
            save_file(final, folder / "final.safetensors")
            print(json.dumps({"start": start.step}))
        dist.barrier()
    finally:
        dist.stop()


leave(guarded(work))
