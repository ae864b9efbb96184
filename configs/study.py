"""Studies: which pretext task helps, and from how many labelled cases on it no longer matters."""

import dataclasses

from configs import finetune, pretrain
from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from launch.cluster import Cluster
from launch.study import Pretext, StudyConfig
from pretrain.mixture import WeightsConfig
from voxscale.engine.config import OptimConfig

STEPS, BATCH = 200, 16


def _pretext(name: str, **weights: float) -> Pretext:
    """The demo's small network under some objectives; equal numbers of steps and samples for all."""
    base = pretrain.demo()
    none = dataclasses.replace(WeightsConfig(), volume_fusion=0.0)
    objective = dataclasses.replace(
        base.objective,
        weights=dataclasses.replace(none, **weights),
        balance="gradients" if len(weights) > 1 else "none",
        measure_every=10,
        part_whole=dataclasses.replace(base.objective.part_whole, hidden=128, bottleneck=64, prototypes=512),
    )
    loop = dataclasses.replace(base.loop, steps=STEPS, batch=BATCH, checkpoint_every=STEPS)
    return Pretext(name=name, pretrain=dataclasses.replace(base, objective=objective, loop=loop))


def small() -> StudyConfig:
    """All objectives, alone and mixed, on a STU-Net of width 8: `make study TASK=... DATA=... OUT=...`.

    For two CPU cores: a process per cell, so that results do not depend on how many there are.
    """
    base = finetune.demo()
    return StudyConfig(
        ingest=IngestConfig(),
        patch_voxels=32**3,
        pack=PackConfig(),
        pretexts=(
            _pretext("volume_fusion", volume_fusion=1.0),
            _pretext("masked", masked_reconstruction=1.0),
            _pretext("part_whole", part_whole=1.0),
            _pretext("graph_matching", graph_matching=1.0),
            _pretext("mixture", volume_fusion=1.0, part_whole=1.0, graph_matching=1.0),
        ),
        finetune=dataclasses.replace(
            base,
            folds=3,
            optim=OptimConfig(lr=2e-3, warmup=0.1),
            loop=dataclasses.replace(base.loop, steps=150, batch=4, checkpoint_every=150),
        ),
        cluster=Cluster(processes=1, cpus=2, hours=6),
    )
