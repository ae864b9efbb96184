"""From our typed config to a DeepSpeed engine."""

import gc
import io
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, cast

import deepspeed
import psutil
import torch
from torch import Tensor, nn

from voxscale import dist
from voxscale.engine.compile import load_ops
from voxscale.engine.config import EngineConfig, OptimConfig
from voxscale.engine.convolution import mend_convolutions
from voxscale.engine.memory import explained_start
from voxscale.engine.norm import mend_batch_norms
from voxscale.engine.optim import build_optimizer, moment_names
from voxscale.engine.pooling import mend_pools
from voxscale.engine.state import write_weights
from voxscale.engine.types import Engine
from voxscale.models.turned import turn_convolutions

log = logging.getLogger("voxscale")


_HELD = 18
"""Bytes of host memory for each weight whose optimizer states are offloaded: fp32 weight, gradient and two moments,
bf16 copy."""
_RECOMPILES = 200
"""Graphs that blocks of one class may have: one for each shape of weights and images, with and without gradients."""
_BUCKET = 100_000_000
"""Gradients that are reduced together; DeepSpeed's own 500 million hold 2 GB."""


def deepspeed_config(config: EngineConfig, micro: int, weights: int = 0) -> dict[str, Any]:
    """The dictionary that DeepSpeed reads.

    Args:
        config: Stage, precision, clipping and accumulation.
        micro: Samples per rank and micro-batch.
        weights: Number of weights of the model.
    """
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        # 0 keeps small tensors sharded too, so that small tests see what large models see.
        "stage3_param_persistence_threshold": 0,
        "overlap_comm": torch.cuda.is_available() and dist.world_size() > 1,
        "reduce_bucket_size": _BUCKET,
    }
    # Pinned memory is copied faster, but torch rounds each piece up to a power of 2, and it cannot be swapped.
    fits = weights * _HELD < psutil.virtual_memory().total / 3
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available() and fits}
    if config.offload != "none":
        zero["offload_optimizer"] = host
    if config.offload == "all":
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip,
        "zero_optimization": zero,
        # The guard of bad steps relies on DeepSpeed dropping a step whose gradient norm is not a number.
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        # Its Adam for offloaded states would be compiled at the first start; torch's own runs there as well.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def start_engine(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    engine: EngineConfig,
    optim: OptimConfig,
    micro: int,
    heads: tuple[str, ...] = (),
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
        heads: What the names of the heads' weights start with, for a model that is not a backbone.

    Raises:
        TrainingError: If memory runs out.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    dist.start()
    load_ops()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    count = sum(p.numel() for p in model.parameters())
    with explained_start(model, len(moment_names(optim)), engine):
        if engine.weights_last == "on":  # in the number type that DeepSpeed would give them, so that none is held twice
            turn_convolutions(model, torch.bfloat16 if engine.precision == "bf16" else torch.float32)
        with _quiet():
            parts = deepspeed.initialize(
                model=model,
                optimizer=build_optimizer(model, optim, heads),
                config=deepspeed_config(engine, micro, count),
                dist_init_required=False,
            )
        made = cast(Engine, parts[0])
        write_weights(made, weights)
    _mend(made.module)
    if engine.compile:
        compile_blocks(made.module)
    return made


def _mend(module: nn.Module) -> None:
    """What torch's own layers would do wrongly or slowly in an engine."""
    mend_convolutions(module)
    mend_batch_norms(module)
    mend_pools(module)


@contextmanager
def _quiet() -> Generator[None]:
    """Spare the garbage collections and lines of memory figures of DeepSpeed 0.19.8 around every group in bf16."""
    said = io.StringIO()
    gc.freeze()  # what is there already is not looked at again
    try:
        with redirect_stdout(said):  # standard output is for results
            yield
    finally:
        gc.unfreeze()
        log.debug("DeepSpeed: %s", said.getvalue())


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compile each repeated block in place, so that equal blocks share one compilation.

    Blocks are the children of every `Sequential` and `ModuleList` that have
    children of their own; parameter names do not change.

    Args:
        model: The network.
        backend: Of torch.compile.

    Returns:
        Number of blocks; the whole model counts as one if it has none.
    """
    inside: set[nn.Module] = set()
    blocks: list[nn.Module] = []
    for group in model.modules():  # outer ones come first
        if group not in inside and isinstance(group, nn.Sequential | nn.ModuleList):
            for block in group:
                nested = isinstance(block, nn.Sequential | nn.ModuleList)
                if not nested and block not in inside and any(True for _ in block.children()):
                    blocks.append(block)
                    inside.update(block.modules())
    for block in blocks or [model]:
        # Blocks of one class count together, and past torch's own limit of 8 shapes they would run uncompiled.
        block.compile(dynamic=False, backend=backend, recompile_limit=_RECOMPILES)
    return max(len(blocks), 1)


def set_learning_rate(engine: Engine, lr: float) -> None:
    """Set the rate of all parameter groups for the next step, each in its proportion."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
