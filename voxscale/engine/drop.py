"""Have DeepSpeed drop a step: gradients are thrown away, weights, moments and their counts stay as they are.

DeepSpeed 0.19.8 drops a step by itself if its gradient norm is invalid (not
finite, or negative). Here the norm, which it has measured over all ranks
anyway, is first shown to a judge, and an invalid one is put in its place if
the judge says so. So the way of dropping is DeepSpeed's own at every stage.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import get_global_norm_of_tensors
from torch import Tensor

from voxscale.engine.types import Engine

Judge = Callable[[float], bool]
"""Maps a step's gradient norm over all ranks, before clipping, to whether the step is dropped."""


def judge_steps(engine: Engine, drop: Judge) -> None:
    """Ask `drop` about every step; it is not asked if DeepSpeed drops the step before it takes the norm."""
    match engine.zero_optimization_stage():
        case 0:
            _judge_plain(engine, drop)
        case 3:
            _judge_stage_3(engine, drop)
        case _ if isinstance(engine.optimizer, BF16_Optimizer):  # stage 1 with bf16
            _judge_bf16(engine, drop)
        case _:
            _judge_stages_1_and_2(engine, drop)


def dropped(engine: Engine) -> bool:
    """Whether DeepSpeed dropped the last step; without ZeRO it has no say."""
    return bool(getattr(engine.optimizer, "overflow", False))


def forget_gradients(engine: Engine) -> None:
    """Throw away what a dropped step has left; every rank must call.

    With offloaded states at stages 1 and 2 in bf16, DeepSpeed 0.19.8 adds up gradients in fp32 in a buffer of
    its own, and forgets to clear it when it drops a step: they would be added to those of the next one.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() in (1, 2) and getattr(optimizer, "cpu_offload", False):
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None


def _judge_stages_1_and_2(engine: Engine, drop: Judge) -> None:
    measure = engine.optimizer.scaled_global_norm

    def measured() -> Tensor:
        norm: Tensor = measure()
        return torch.full_like(norm, -1.0) if drop(float(norm)) else norm

    engine.optimizer.scaled_global_norm = measured


def _judge_bf16(engine: Engine, drop: Judge) -> None:
    grads = engine.optimizer.get_grads_for_norm

    def judged(for_clipping: bool = False) -> Any:
        found = grads(for_clipping)
        if for_clipping:  # asked after the norm was taken
            return found
        norm = float(get_global_norm_of_tensors(found[0]))
        return ([torch.full((1,), float("nan"), device=engine.device)], []) if drop(norm) else found

    engine.optimizer.get_grads_for_norm = judged


def _judge_stage_3(engine: Engine, drop: Judge) -> None:
    measure = engine.optimizer._get_norm_groups

    def measured() -> list[Tensor]:
        groups = [torch.as_tensor(norm) for norm in measure()]
        stacked = torch.stack(groups)
        # Norms that are not finite come as -1.
        norm = float("inf") if bool((stacked < 0).any()) else float(torch.linalg.vector_norm(stacked))
        return [torch.full_like(groups[0], -1.0)] if drop(norm) else groups

    engine.optimizer._get_norm_groups = measured


def _judge_plain(engine: Engine, drop: Judge) -> None:
    """Without ZeRO the optimizer is torch's own, which leaves alone what has no gradient."""
    limit = engine.gradient_clipping()

    def clip() -> None:
        params = [p for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if drop(float(norm)):
            for p in params:
                p.grad = None
        else:
            torch.nn.utils.clip_grads_with_norm_(params, limit, norm)

    engine.clip_fp32_gradients = clip
