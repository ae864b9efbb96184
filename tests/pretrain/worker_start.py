"""Two ranks of a pretraining, of which one is lost before the first step: python worker_start.py HOW ARGUMENTS

HOW: hang (rank 1 reads its first weights for ever), kill (it dies while its engine starts).
"""

import os
import signal
import sys
import time
from typing import Any

import torch

from pretrain import train
from pretrain.config import PretrainConfig
from pretrain.train import pretrain
from voxscale import dist
from voxscale.cli import leave, run

how, *arguments = sys.argv[1:]
torch.set_num_threads(1)


def hang(*_: Any) -> Any:
    time.sleep(600)


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


if dist.rank() == 1:
    if how == "hang":
        train.first_weights = hang
    else:
        train.start_engine = die
leave(run(PretrainConfig, pretrain, arguments, "python -m pretrain"))
