"""Do the features get better? Small pretrainings that are probed while they train, see docs/results/probe.md."""

import dataclasses

from configs import pretrain
from pretrain.config import PretrainConfig
from pretrain.mixture import MixtureConfig, WeightsConfig
from pretrain.objectives.volume_fusion import VolumeFusionConfig
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
    weights = WeightsConfig(volume_fusion=0.0, masked_reconstruction=1.0)
    return dataclasses.replace(volume_fusion(), objective=MixtureConfig(weights=weights))
