"""Fine-tuning presets."""

from configs.pretrain import fast_precision
from finetune.config import FinetuneConfig
from voxscale.engine.config import EngineConfig, LoopConfig, OptimConfig
from voxscale.loader import LoaderConfig


def default() -> FinetuneConfig:
    """Five folds of 5,000 steps with five deep-supervision heads less the zero-weighted one.

    `python -m launch finetune configs/finetune.py:default --store STORE --plan PLAN --checkpoint RUN --run RUN2`

    Cost on GPUs: not measured yet.
    """
    return FinetuneConfig(
        folds=5,
        seeds=(0, 1, 2),
        heads=4,
        optim=OptimConfig(kind="adamw", lr=1e-3),
        loader=LoaderConfig(workers=8),
        loop=LoopConfig(steps=5000, batch=2, log_every=50, checkpoint_every=1000),
    )


def demo() -> FinetuneConfig:
    """Three folds of a few dozen steps on two CPU cores."""
    return FinetuneConfig(
        folds=3,
        heads=2,
        engine=EngineConfig(zero_stage=1, precision=fast_precision()),
        optim=OptimConfig(lr=2e-3, warmup=0.1),
        loop=LoopConfig(steps=80, batch=4, log_every=5, checkpoint_every=40),
    )
