"""A rank of a pretraining in which something goes wrong: python worker_start.py HOW ARGUMENTS

HOW: hang (rank 1 reads its first weights for ever), kill (it dies while its engine starts), after (it makes pictures
for ever); probe, pictures (memory runs out in them).
"""

import os
import signal
import sys
import time
from typing import Any

import torch

from pretrain import preview, train
from pretrain.config import PretrainConfig
from pretrain.probe import prober
from pretrain.train import pretrain
from voxscale import dist
from voxscale.cli import leave, run

how, *arguments = sys.argv[1:]
torch.set_num_threads(1)


def hang(*_: Any) -> Any:
    time.sleep(600)


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def full(*_: Any) -> Any:
    raise torch.OutOfMemoryError("out of memory")


if how == "probe":
    prober.property_figures = full
elif how == "pictures":
    preview.neighbours = full
elif dist.rank() == 1:
    if how == "hang":
        train.first_weights = hang
    elif how == "after":
        train.make_preview = hang
    else:
        train.start_engine = die
leave(run(lambda: PretrainConfig, pretrain, arguments, "python -m pretrain"))
