"""Do the features get better? Small pretrainings that are probed while they train, see docs/results/probe.md."""

import dataclasses

from configs import pretrain
from pretrain.config import PretrainConfig
from pretrain.mixture import MixtureConfig, WeightsConfig
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.probe.config import ProbeConfig
from voxscale.engine.config import EngineConfig, OptimConfig, TrackerConfig


def volume_fusion() -> PretrainConfig:
    """A STU-Net of width 8 under Volume Fusion, in fp32 on one core.

    `python -m pretrain configs/probe.py:volume_fusion --shards SHARDS --probe.labelled STORE --run RUN --seed 0`
    """
    base = pretrain.demo()
    return dataclasses.replace(
        base,
        objective=MixtureConfig(volume_fusion=VolumeFusionConfig(block_min=4, block_max=12)),
        engine=EngineConfig(zero_stage=1, precision="fp32"),
        optim=OptimConfig(lr=3e-3, warmup=0.1),
        loop=dataclasses.replace(base.loop, steps=200, batch=8, log_every=10, checkpoint_every=200),
        probe=ProbeConfig(every=50, cases=16, crops=1, queries=1024, patches=32),
        tracker=TrackerConfig(wandb=False),
    )


def masked() -> PretrainConfig:
    """The same under masked reconstruction."""
    return _under(masked_reconstruction=1.0)


def part_whole() -> PretrainConfig:
    """The same under part-whole, with small heads."""
    return _under(part_whole=1.0)


def part_whole_contrast() -> PretrainConfig:
    """Part-whole with terms that no constant solves: targets told apart among samples, embeddings kept apart."""
    base = part_whole()
    terms = dataclasses.replace(
        base.objective.part_whole,
        inputs="standard",
        targets="standard",
        moments_momentum=0.0,
        match="contrast",
        centring="sinkhorn",
        prototypes=128,
        spread=0.1,
    )
    objective = dataclasses.replace(base.objective, part_whole=terms)
    return dataclasses.replace(base, objective=objective)


def graph_matching() -> PretrainConfig:
    """The same under graph matching of samples, 8 to a graph."""
    return _under(graph_matching=1.0)


def patch_matching() -> PretrainConfig:
    """The same under graph matching of tokens of two views."""
    return _under(patch_matching=1.0)


def mixture() -> PretrainConfig:
    """The same under three objectives at once, balanced by their gradients."""
    return _under(volume_fusion=1.0, part_whole=1.0, graph_matching=1.0)


def _under(**weights: float) -> PretrainConfig:
    """60 steps of 8 samples."""
    base = volume_fusion()
    none = WeightsConfig(volume_fusion=0.0)
    objective = dataclasses.replace(
        base.objective,
        weights=dataclasses.replace(none, **weights),
        balance="gradients" if len(weights) > 1 else "none",
        measure_every=10 if len(weights) > 1 else 0,
        part_whole=PartWholeConfig(hidden=128, bottleneck=64, prototypes=512),
        graph_matching=GraphMatchingConfig(group=8),
    )
    loop = dataclasses.replace(base.loop, steps=60, checkpoint_every=60)
    probe = dataclasses.replace(base.probe, every=60)
    config = dataclasses.replace(base, objective=objective, loop=loop, probe=probe)
    return pretrain.alike(config) if "graph_matching" in weights else config
