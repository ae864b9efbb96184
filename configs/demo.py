"""Presets of the whole chain, for `make demo`."""

import dataclasses

from configs import finetune, pretrain
from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from data_prep.phantom import PhantomConfig
from launch.chain import DemoConfig
from launch.cluster import Cluster


def phantoms() -> DemoConfig:
    """Synthetic scans, or any folders given with DATA and TASK, on two processes of this machine: `make demo`."""
    return DemoConfig(
        phantom=PhantomConfig(),
        ingest=IngestConfig(),
        patch_voxels=48**3,
        pack=PackConfig(),
        pretrain=pretrain.demo(),
        finetune=finetune.demo(),
        cluster=Cluster(processes=2, hours=6),
    )


def reduced() -> DemoConfig:
    """All stages with few scans and few steps, for continuous integration: `make demo PRESET=reduced`."""
    full = phantoms()
    return dataclasses.replace(
        full,
        phantom=PhantomConfig(unlabelled=9, labelled=4),
        patch_voxels=32**3,
        pretrain=dataclasses.replace(
            full.pretrain, loop=dataclasses.replace(full.pretrain.loop, steps=20, checkpoint_every=10)
        ),
        finetune=dataclasses.replace(
            full.finetune, folds=2, loop=dataclasses.replace(full.finetune.loop, steps=10, checkpoint_every=5)
        ),
    )
