"""Studies: which pretext task helps, and from how many labelled cases on it no longer matters."""

import dataclasses

from configs import finetune, pretrain
from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from launch.cluster import Cluster
from launch.study import Pretext, StudyConfig
from pretrain.mixture import WeightsConfig
from voxscale.engine.config import OptimConfig, TrackerConfig
from voxscale.models.stunet import STUNetConfig

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
    config = dataclasses.replace(base, objective=objective, loop=loop)
    return Pretext(name=name, pretrain=pretrain.alike(config) if "graph_matching" in weights else config)


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


def _wider(one: Pretext, steps: int, batch: int) -> Pretext:
    """The same pretext task on STU-Net S with a budget for GPUs."""
    base = one.pretrain
    loop = dataclasses.replace(base.loop, steps=steps, batch=batch, log_every=50, checkpoint_every=steps)
    model = STUNetConfig(width=16, depth=1)
    optim = dataclasses.replace(base.optim, lr=1e-3)
    pretrain = dataclasses.replace(base, model=model, loop=loop, optim=optim, tracker=TrackerConfig(wandb=False))
    return Pretext(name=one.name, pretrain=pretrain)


def _nothing() -> Pretext:
    """A control: as many steps as masked reconstruction takes, with another sample's voxels to be told."""
    base = _pretext("nothing", masked_reconstruction=1.0).pretrain
    masked = dataclasses.replace(base.objective.masked_reconstruction, truth="another")
    objective = dataclasses.replace(base.objective, masked_reconstruction=masked)
    return Pretext(name="nothing", pretrain=dataclasses.replace(base, objective=objective))


def _controlled(subjects: tuple[int, ...]) -> StudyConfig:
    """All objectives and the control on the small network, a core for each training; cheap answers first."""
    base = small()
    order = ("nothing", "volume_fusion", "masked", "graph_matching", "part_whole", "mixture")
    named = {one.name: one for one in (*base.pretexts, _nothing())}
    finetune = dataclasses.replace(base.finetune, tracker=TrackerConfig(wandb=False))
    return dataclasses.replace(
        base,
        pretexts=tuple(_offline(named[name]) for name in order),
        control="nothing",
        subjects=subjects,
        finetune=finetune,
        cluster=Cluster(processes=1, cpus=1, hours=6),
    )


def _offline(one: Pretext) -> Pretext:
    return Pretext(name=one.name, pretrain=dataclasses.replace(one.pretrain, tracker=TrackerConfig(wandb=False)))


def hippocampus_small() -> StudyConfig:
    """Width 8, patches of up to 48 x 32 x 32 voxels, for CPU cores: `make study STUDY=hippocampus_small JOBS=2 ...`."""
    return dataclasses.replace(_controlled((16, 2, 8, 4)), patch_voxels=48 * 32 * 32)


def hippocampus_parts() -> StudyConfig:
    """Part-whole, the mixture and the control of `hippocampus_small`."""
    return _parts(hippocampus_small(), (4, 16, 2, 8))


def vertebrae_small() -> StudyConfig:
    """The same at 3 mm on patches of up to 32^3 voxels, for 2 and 4 labelled subjects."""
    return dataclasses.replace(_controlled((4, 2)), patch_voxels=32**3, spacing=(3.0, 3.0, 3.0))


def vertebrae_parts() -> StudyConfig:
    """Part-whole, the mixture and the control of `vertebrae_small`."""
    return _parts(vertebrae_small(), (4, 2))


def _parts(base: StudyConfig, subjects: tuple[int, ...]) -> StudyConfig:
    few = tuple(one for one in base.pretexts if one.name in ("nothing", "part_whole", "mixture"))
    return dataclasses.replace(base, pretexts=few, subjects=subjects)


def _gpu(pretraining: int, finetuning: int) -> StudyConfig:
    base = small()
    order = ("volume_fusion", "nothing", "mixture", "graph_matching", "part_whole", "masked")
    named = {one.name: one for one in (*base.pretexts, _nothing())}
    loop = dataclasses.replace(base.finetune.loop, steps=finetuning, batch=8, log_every=50, checkpoint_every=finetuning)
    return dataclasses.replace(
        base,
        pack=PackConfig(factor=1.0, overlap=0.0),
        pretexts=tuple(_wider(named[name], pretraining, 16) for name in order),
        control="nothing",
        finetune=dataclasses.replace(
            base.finetune,
            loop=loop,
            inference=dataclasses.replace(base.finetune.inference, batch=16),
            tracker=TrackerConfig(wandb=False),
        ),
        cluster=Cluster(processes=1, cpus=1, hours=6),
    )


def hippocampus() -> StudyConfig:
    """STU-Net S on patches of up to 48 x 32 x 32 voxels, for one GPU: `make study STUDY=hippocampus JOBS=12 ...`.

    All objectives and a control that has nothing to learn. Most important first, so that a run that is stopped holds
    few and some more subjects in full.
    """
    return dataclasses.replace(_gpu(300, 200), patch_voxels=48 * 32 * 32, subjects=(2, 8, 4, 16))


def hippocampus_short() -> StudyConfig:
    """Three pretext tasks and the control of it, fewer steps of both kinds, for minutes of a GPU."""
    base = _gpu(200, 100)
    few = tuple(one for one in base.pretexts if one.name in ("volume_fusion", "nothing", "masked", "mixture"))
    return dataclasses.replace(base, patch_voxels=48 * 32 * 32, pretexts=few)


def vertebrae() -> StudyConfig:
    """The same at 2 mm on patches of up to 48^3 voxels, for 2 and 4 labelled subjects. Cost estimated, not measured."""
    return dataclasses.replace(_gpu(200, 100), patch_voxels=48**3, spacing=(2.0, 2.0, 2.0), subjects=(2, 4))
