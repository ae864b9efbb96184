"""From our typed config to a DeepSpeed engine."""

import logging
from collections.abc import Mapping
from typing import Any, cast

import deepspeed
import torch
from torch import Tensor, nn

from voxscale import dist
from voxscale.engine.config import EngineConfig, OptimConfig
from voxscale.engine.optim import build_optimizer
from voxscale.engine.state import write_weights
from voxscale.engine.types import Engine


def deepspeed_config(config: EngineConfig, micro: int) -> dict[str, Any]:
    """The dictionary that DeepSpeed reads.

    Args:
        config: Stage, precision, clipping and accumulation.
        micro: Samples per rank and micro-batch.
    """
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            # 0 keeps small tensors sharded too, so that small tests see what large models see.
            "stage3_param_persistence_threshold": 0,
            "overlap_comm": torch.cuda.is_available(),
        },
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def start_engine(
    model: nn.Module, weights: Mapping[str, Tensor], engine: EngineConfig, optim: OptimConfig, micro: int
) -> Engine:
    """Wrap a model for training and set its fp32 master weights exactly.

    DeepSpeed rounds a model to bf16 before it takes its fp32 master copy, so
    the weights are written once more behind it.

    Args:
        model: The network, on any device.
        weights: Whole fp32 weights by parameter name, equal on all ranks.
        engine: Stage, precision, clipping and accumulation.
        optim: Optimizer.
        micro: Samples per rank and micro-batch.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    dist.start()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    parts = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, optim),
        config=deepspeed_config(engine, micro),
        dist_init_required=False,
    )
    made = cast(Engine, parts[0])
    write_weights(made, weights)
    return made


def set_learning_rate(engine: Engine, lr: float) -> None:
    """Set the rate of all parameter groups for the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
