"""`python -m pretrain` several times in one process: python worker_pretrain.py FILE (of lists of arguments).

A list `remove FOLDER` takes a checkpoint away.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from pretrain.config import PretrainConfig
from pretrain.train import pretrain
from voxscale import dist
from voxscale.cli import leave, run

torch.set_num_threads(1)
dist.start()
dist.stop, stop = lambda: None, dist.stop  # the ranks stay together from run to run
cases = json.loads(Path(sys.argv[1]).read_text())
statuses: list[int] = []
for case in cases:
    if case[0] == "remove":
        shutil.rmtree(case[1])
    else:
        statuses.append(run(lambda: PretrainConfig, pretrain, case, "python -m pretrain"))
stop()
leave(max(statuses))
