"""Training state by parameter name: out of a DeepSpeed engine and back in, at any ZeRO stage.

DeepSpeed's own save and load unpickle and are not crash-safe. Here each rank
names the flat slices that it holds of every fp32 weight and moment, and gets
its slices back from wherever they were written: no rank gathers the model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from voxscale.engine.pieces import Piece, Stored
from voxscale.engine.types import Engine
from voxscale.errors import CheckpointError
from voxscale.models.turned import turn, turn_back, turned_names, turned_shape, weight_shape


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of one flattened parameter whose fp32 weight and moments this rank updates.

    Attributes:
        name: Of the parameter.
        shape: Of the whole weight, as files and other networks know it.
        start: First element; all ranks' slices of a parameter together cover it once.
        stop: End; `start` if this rank holds nothing of it.
        turned: Whether the parameter is turned (`voxscale.models.turned`); then elements count in its order.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    turned: bool = False

    def laid(self, weight: Tensor) -> Tensor:
        """A whole weight in the shape of the parameter."""
        return turn(weight) if self.turned else weight

    def whole(self, parameter: Tensor) -> Tensor:
        """The whole weight, contiguous, of the elements of the whole parameter."""
        if not self.turned:
            return parameter.reshape(self.shape).contiguous()
        return turn_back(parameter.reshape(turned_shape(self.shape))).contiguous()


def slices(engine: Engine) -> Iterator[tuple[nn.Parameter, Slice]]:
    """Every parameter with this rank's slice of it.

    Under ZeRO-1 and 2 DeepSpeed cuts the flattened parameter groups into one
    range per rank (`_hp_mapping`), under ZeRO-3 each tensor into equal parts
    (`ds_tensor`, the last ones padded). Without ZeRO every rank holds all;
    the ranks then share the writing, each an equal part of each tensor.
    """
    rank, world = engine.global_rank, engine.dp_world_size
    turned = turned_names(engine.module)
    for name, param in engine.module.named_parameters():
        if not param.requires_grad:
            raise CheckpointError(f"model.{name} must be trained; frozen parameters have no place in a checkpoint yet")
        shape = tuple(getattr(param, "ds_shape", param.shape))
        count = torch.Size(shape).numel()
        match engine.zero_optimization_stage():
            case 3:
                each = _part_size(param)
                start, stop = min(each * rank, count), min(each * (rank + 1), count)
            case 0:
                start, stop = count * rank // world, count * (rank + 1) // world
            case _:
                held = _fragment(param)
                start = held.lp_fragment_address.start if held is not None else 0
                stop = start + held.lp_fragment_address.numel if held is not None else 0
        yield param, Slice(name, weight_shape(shape) if name in turned else shape, start, stop, name in turned)


def _part_size(param: nn.Parameter) -> int:
    return param.ds_tensor.numel()  # pyright: ignore[reportAttributeAccessIssue]  # DeepSpeed adds it


def _fragment(param: nn.Parameter) -> Any:
    return param._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]  # DeepSpeed adds it


def pieces(engine: Engine, moments: tuple[str, ...]) -> Iterator[Piece]:
    """This rank's slices of fp32 weights and moments, where training holds them; nothing is sent between ranks."""
    if any(part not in _inner(engine).state for part in _flat_parts(engine)):
        make_moments(engine, moments, 0)  # no step has changed a weight yet
    _link_moments(engine)
    for param, part in slices(engine):
        if part.stop > part.start:
            for kind in ("weights", *moments):
                value = _held(engine, param, part, kind)
                yield Piece(kind, part.name, part.shape, part.start, value, part.turned)


def master_slices(engine: Engine) -> Iterator[tuple[Slice, Tensor]]:
    """This rank's slice of every parameter with its fp32 values (none where it is empty), where training holds them."""
    for param, part in slices(engine):
        yield part, _held(engine, param, part, "weights") if part.stop > part.start else torch.empty(0)


def _held(engine: Engine, param: nn.Parameter, part: Slice, kind: str) -> Tensor:
    """The fp32 values of a rank's slice."""
    moment = None if kind == "weights" else kind
    match engine.zero_optimization_stage():
        case 3:
            value = safe_get_local_optimizer_state(param, moment) if moment else safe_get_local_fp32_param(param)
            assert value is not None
            return value[: part.stop - part.start]  # the rest is padding
        case 0:
            value = engine.optimizer.state[param][moment] if moment else param.detach()
            return value.reshape(-1)[part.start : part.stop]
        case _:
            return _fragment(param).get_hp_fragment(moment)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a model holds besides parameters, such as running statistics of batch norms; whole on every rank."""
    named = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if name not in named and isinstance(value, Tensor)}


def buffer_pieces(engine: Engine) -> Iterator[Piece]:
    """This rank's buffers: each rank's own, as every rank sees other samples."""
    for name, value in buffers(engine.module).items():
        key = f"rank{engine.global_rank}/{name}"
        yield Piece("buffers", key, tuple(value.shape), 0, value.detach().reshape(-1))


def write_buffers(engine: Engine, values: Mapping[str, Tensor]) -> None:
    """Set every buffer.

    Raises:
        CheckpointError: If names or shapes are not the model's own.
    """
    mine = buffers(engine.module)
    shapes = [{(name, tuple(value.shape)) for name, value in each.items()} for each in (mine, values)]
    wrong = sorted(shapes[0] ^ shapes[1])
    if wrong:
        raise CheckpointError(
            f"checkpoint.buffers must be those of this architecture, not {len(wrong)} others, first "
            f"{wrong[0][0]} {list(wrong[0][1])}; use the checkpoint's own model config"
        )
    for name, value in mine.items():
        value.detach().copy_(values[name])


def _sharded(engine: Engine) -> bool:
    return engine.zero_optimization_stage() > 0


def _inner(engine: Engine) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if _sharded(engine) else engine.optimizer


def _flat_parts(engine: Engine) -> list[Tensor]:
    """The tensors that the inner optimizer steps on, on this rank."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [p for group in _inner(engine).param_groups for p in group["params"]]


def updates(engine: Engine) -> int:
    """Updates that the optimizer has made; fewer than steps where steps were skipped."""
    counts = [int(state["step"]) for state in _inner(engine).state.values() if "step" in state]
    return max(counts, default=0)


def make_moments(engine: Engine, moments: tuple[str, ...], updates: int) -> None:
    """Give the inner optimizer moments of zeros and its number of updates, in the form that its first step would."""
    fused = bool(_inner(engine).defaults.get("fused"))
    for part in _flat_parts(engine):
        state = _inner(engine).state[part]
        if "exp_avg" in moments:  # the fused form counts beside the weights
            state["step"] = torch.tensor(float(updates), device=part.device if fused else None)
        for moment in moments:
            state[moment] = torch.zeros_like(part, memory_format=torch.preserve_format)
    _link_moments(engine)


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
    for param, part in slices(engine):
        full = safe_get_full_fp32_param(param) if _sharded(engine) else param.detach()
        assert full is not None
        yield part.name, part.whole(full.float().cpu().clone())


def write_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Set every master weight and the working copy made from it, one tensor at a time.

    Raises:
        CheckpointError: If names or shapes are not the model's own.
    """
    shapes = weights.shapes if isinstance(weights, Stored) else {n: tuple(v.shape) for n, v in weights.items()}
    expected = {part.name: part.shape for _, part in slices(engine)}
    wrong = sorted(set(expected.items()) ^ set(shapes.items()))
    if wrong:
        raise CheckpointError(
            f"checkpoint.weights must be those of this architecture, not {len(wrong)} others, first "
            f"{wrong[0][0]} {list(wrong[0][1])}; use the checkpoint's own model config"
        )
    for param, part in slices(engine):
        if engine.zero_optimization_stage() == 3:
            own = _padded(engine, param, part, weights)
            safe_set_local_fp32_param(param, own)
            _set_working_part(engine, param, part, own, weights)
        else:
            value = part.laid(weights[part.name].to(engine.device, torch.float32))
            with torch.no_grad():
                param.copy_(value)
            if _sharded(engine) and part.stop > part.start:
                _held(engine, param, part, "weights").data.copy_(value.flatten()[part.start : part.stop])


def _padded(engine: Engine, param: nn.Parameter, part: Slice, values: Mapping[str, Tensor]) -> Tensor:
    """A rank's slice under ZeRO-3, with zeros up to the size that all parts have there."""
    own = _slice_of(values, part).to(engine.device, torch.float32)
    return torch.nn.functional.pad(own, (0, _part_size(param) - own.numel()))


def _slice_of(values: Mapping[str, Tensor], part: Slice) -> Tensor:
    if isinstance(values, Stored):
        return values.part(part.name, part.start, part.stop, part.turned)
    return part.laid(values[part.name]).flatten()[part.start : part.stop]


def _set_working_part(
    engine: Engine, param: nn.Parameter, part: Slice, own: Tensor, weights: Mapping[str, Tensor]
) -> None:
    """Set what forward passes gather under ZeRO-3; small tensors that DeepSpeed keeps whole are set whole."""
    if getattr(param, "ds_persist", False):
        with torch.no_grad(), deepspeed.zero.GatheredParameters([param], modifier_rank=0):
            if engine.global_rank == 0:
                param.copy_(part.laid(weights[part.name]).to(engine.device))
    else:
        param.ds_tensor.data.copy_(own)  # pyright: ignore[reportAttributeAccessIssue]  # DeepSpeed adds it


def write_moment(engine: Engine, moment: str, values: Mapping[str, Tensor]) -> None:
    """Set one moment of every parameter, after `make_moments`; each rank takes only its slices."""
    for param, part in slices(engine):
        if engine.zero_optimization_stage() == 3:
            safe_set_local_optimizer_state(param, _padded(engine, param, part, values), moment)
        elif not _sharded(engine):
            engine.optimizer.state[param][moment].copy_(part.laid(values[part.name]))
        elif part.stop > part.start:
            _held(engine, param, part, moment).data.copy_(_slice_of(values, part))
