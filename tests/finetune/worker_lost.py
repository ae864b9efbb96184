"""A rank of a fine-tuning, in which one may be lost behind the training: python worker_lost.py HOW FOLDER

HOW: hang (rank 1 segments for ever), slow (it takes longer than its patience, but moves on), score (rank 0 scores for
ever), ask (SIGUSR1 comes to rank 1 alone while it segments), even (nothing happens). FOLDER holds
`task` and `plan.json`.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from finetune import train
from finetune.config import FinetuneConfig
from voxscale import dist
from voxscale.cli import guarded, leave
from voxscale.engine.config import EngineConfig, LoopConfig, TrackerConfig, WatchConfig
from voxscale.loader import LoaderConfig
from voxscale.log import setup
from voxscale.models.stunet import STUNetConfig
from voxscale.signals import ending

how, folder = sys.argv[1], Path(sys.argv[2])
even = how == "even"
torch.set_num_threads(1)
setup()
config = FinetuneConfig(
    store=folder / "task",
    plan=folder / "plan.json",
    run=folder / f"{how}-{dist.world_size()}",
    backbone=STUNetConfig(width=2, depth=1),
    arms=("scratch",),
    folds=2,
    heads=1,
    engine=EngineConfig(precision="fp32"),
    loader=LoaderConfig(workers=0),
    loop=LoopConfig(
        steps=2 if how == "even" else 1, batch=4 if how == "even" else 2, log_every=1, watch=WatchConfig(patience_s=5.0)
    ),
    tracker=TrackerConfig(wandb=False),
)
inner = train.segment


def hang(*_: Any) -> Any:
    time.sleep(600)


def slow(predict: Any, *more: Any) -> Any:
    for _ in range(5):
        time.sleep(2)
        predict(torch.zeros(1, 1, 16, 16, 16))
    return inner(predict, *more)


def ask(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGUSR1)


def work() -> None:
    with ending("finetune"):
        train.finetune(config)


if dist.rank() == 1 and how != "score" and not even:
    train.segment = {"hang": hang, "slow": slow, "ask": ask}[how]
if dist.rank() == 0 and how == "score":
    train.score_cases = hang
leave(guarded(work))
