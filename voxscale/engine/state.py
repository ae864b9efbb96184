"""Training state by parameter name: out of a DeepSpeed engine and back in, at any ZeRO stage.

DeepSpeed's own save and load unpickle and are not crash-safe, so weights and
moments are read and written through its tensor-fragment functions, one whole
fp32 tensor per parameter, whatever the sharding.
"""

from collections.abc import Iterator, Mapping

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from voxscale.engine.types import Engine
from voxscale.errors import CheckpointError


def _sharded(engine: Engine) -> bool:
    return engine.zero_optimization_stage() > 0


def _inner(engine: Engine) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if _sharded(engine) else engine.optimizer


def _flat_parts(engine: Engine) -> list[Tensor]:
    """The tensors that the inner optimizer steps on, on this rank."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [p for group in _inner(engine).param_groups for p in group["params"]]


def _own_part(engine: Engine, param: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor under ZeRO-3, zero-padded to equal parts as DeepSpeed keeps it."""
    size = param.ds_tensor.numel()  # pyright: ignore[reportAttributeAccessIssue]  # DeepSpeed adds it
    flat = value.flatten()
    padded = torch.nn.functional.pad(flat, (0, size * engine.dp_world_size - flat.numel()))
    return padded.narrow(0, size * engine.global_rank, size)


def _set_weight(engine: Engine, param: nn.Parameter, value: Tensor) -> None:
    # DeepSpeed 0.19.8's whole-tensor setter fails under ZeRO-3 where ranks do not divide the tensor.
    if engine.zero_optimization_stage() == 3:
        safe_set_local_fp32_param(param, _own_part(engine, param, value))
    elif _sharded(engine):
        safe_set_full_fp32_param(param, value)


def _set_moment(engine: Engine, param: nn.Parameter, value: Tensor, moment: str) -> None:
    if engine.zero_optimization_stage() == 3:
        safe_set_local_optimizer_state(param, _own_part(engine, param, value), moment)
    elif _sharded(engine):
        safe_set_full_optimizer_state(param, value, moment)
    else:
        engine.optimizer.state[param][moment].copy_(value)


def _link_moments(engine: Engine) -> None:
    """Point every parameter at its part of the flat moments.

    DeepSpeed 0.19.8 does this once, inside the step of the first parameter
    group, when the other groups have no moments yet; so it is done again here.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def read_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole fp32 weight on the CPU); a collective call: every rank must iterate to the end."""
    for name, param in engine.module.named_parameters():
        full = safe_get_full_fp32_param(param) if _sharded(engine) else param.detach()
        assert full is not None
        yield name, full.float().cpu().clone().contiguous()


def read_moments(engine: Engine, moments: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield (`moment.name`, whole fp32 tensor on the CPU); collective like `read_weights`."""
    _link_moments(engine)
    for name, param in engine.module.named_parameters():
        for moment in moments:
            if _sharded(engine):
                full = safe_get_full_optimizer_state(param, moment)
            else:
                full = engine.optimizer.state[param][moment]
            assert full is not None
            yield f"{moment}.{name}", full.float().cpu().clone().contiguous()


def write_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Set every master weight and the working copy made from it.

    Raises:
        CheckpointError: If names or shapes are not the model's own.
    """
    expected = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(set(expected.items()) ^ set(found.items()))
    if wrong:
        raise CheckpointError(
            f"checkpoint.weights must be those of this architecture, not {len(wrong)} others, first "
            f"{wrong[0][0]} {list(wrong[0][1])}; use the checkpoint's own model config"
        )
    for name, param in engine.module.named_parameters():
        value = weights[name].to(engine.device, torch.float32)
        _write_working_copy(engine, param, value)
        _set_weight(engine, param, value)


def _write_working_copy(engine: Engine, param: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        if engine.zero_optimization_stage() == 3:
            with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
                if engine.global_rank == 0:
                    param.copy_(value)
        else:
            param.copy_(value)


def write_moments(engine: Engine, values: Mapping[str, Tensor], moments: tuple[str, ...], step: int) -> None:
    """Set the optimizer's moments and its step count.

    The inner optimizer makes its state at its first step, so it is made here
    in the same form before it is filled.
    """
    inner = _inner(engine)
    for part in _flat_parts(engine):
        state = inner.state[part]
        if "exp_avg" in moments:
            state["step"] = torch.tensor(float(step))
        for moment in moments:
            state[moment] = torch.zeros_like(part, memory_format=torch.preserve_format)
    _link_moments(engine)
    for name, param in engine.module.named_parameters():
        for moment in moments:
            _set_moment(engine, param, values[f"{moment}.{name}"].to(engine.device), moment)
