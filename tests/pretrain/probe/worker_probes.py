"""One rank of small pretrainings, with and without probes; prints where the generators stand after each.

python worker_probes.py FOLDER STAGE-PROBES ...
"""

import dataclasses
import random
import sys
from pathlib import Path

import numpy as np
import torch

from configs.pretrain import demo
from pretrain.mixture import MixtureConfig
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.probe.config import ProbeConfig
from pretrain.train import pretrain
from voxscale import dist
from voxscale.engine.config import EngineConfig, LoopConfig, TrackerConfig
from voxscale.models.pctnet import PCTNetConfig

PROBE = ProbeConfig(every=2, cases=4, crops=1, examples=40, queries=200, folds=2, k=3, patches=5)

folder = Path(sys.argv[1])
dist.start()
dist.stop = lambda: None  # one process group for all runs
for name in sys.argv[2:]:
    stage, probes = name.split("-")
    random.seed(0)
    torch.manual_seed(dist.rank())  # of dropout and drop path, which draw from the generator of the process
    pretrain(
        dataclasses.replace(
            demo(),
            shards=folder / "shards",
            run=folder / name,
            model=PCTNetConfig(channels=(2, 4, 8, 8, 16), blocks=1, window=2),  # with running statistics
            objective=MixtureConfig(volume_fusion=VolumeFusionConfig(block_min=2, block_max=6)),
            engine=EngineConfig(zero_stage=int(stage), precision="fp32"),
            loop=LoopConfig(steps=4, batch=4, log_every=1, checkpoint_every=4),
            tracker=TrackerConfig(wandb=False),
            probe=dataclasses.replace(PROBE, labelled=folder / "task") if probes == "yes" else ProbeConfig(),
        )
    )
    print(f"drawn {float(torch.rand(()))} {random.random()} {np.random.get_state()[2]}")
