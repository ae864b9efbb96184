"""Out of memory: which layer failed, which tensors are the largest, and which lever to pull."""

import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from voxscale import dist
from voxscale.engine.config import EngineConfig
from voxscale.engine.types import Engine
from voxscale.errors import TrainingError

SHOWN = 6
"""Tensors named in the error."""


@dataclass(frozen=True, slots=True)
class Use:
    """One thing that takes memory on this rank.

    Attributes:
        kind: `weight`, `gradient`, `optimizer` or `activation`.
        name: Parameter or module.
        shape: Of the tensor.
        bytes: Its size.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    bytes: int

    def text(self) -> str:
        """Such as `activation conv_blocks_context.0.0.conv1 [1, 32, 96, 96, 96] 113.2 MB`."""
        return f"{self.kind} {self.name} {list(self.shape)} {self.bytes / 1e6:.1f} MB"


class Ledger:
    """Remembers the outputs of a model's layers in the first forward pass, which autograd keeps out of sight.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.activations: list[Use] = []
        leaves = ((name, module) for name, module in model.named_modules() if not any(True for _ in module.children()))
        self._hooks: list[RemovableHandle] = [module.register_forward_hook(self._note(name)) for name, module in leaves]

    def _note(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            del module, inputs
            if isinstance(output, Tensor) and output.requires_grad:
                self.activations.append(Use("activation", name, tuple(output.shape), output.nbytes))

        return hook

    def close(self) -> None:
        """Look no longer: every pass is like the first."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def states(engine: Engine) -> list[Use]:
    """Weights, gradients and optimizer states that this rank holds."""
    found: list[Use] = []
    for name, p in engine.module.named_parameters():
        shape = tuple(getattr(p, "ds_shape", p.shape))
        held = getattr(p, "ds_tensor", p)
        found.append(Use("weight", name, shape, int(held.nbytes)))
        if p.grad is not None:
            found.append(Use("gradient", name, shape, p.grad.nbytes))
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if engine.zero_optimization_stage() > 0:
        flat: Any = [p for group in inner.param_groups for p in group["params"]]
        flat = getattr(engine.optimizer, "fp32_partitioned_groups_flat", flat)
        found += [Use("optimizer", f"fp32 weights of group {i}", tuple(p.shape), p.nbytes) for i, p in enumerate(flat)]
    for i, state in enumerate(inner.state.values()):
        tensors = ((key, value) for key, value in state.items() if isinstance(value, Tensor) and value.ndim)
        found += [Use("optimizer", f"{key} of group {i}", tuple(v.shape), v.nbytes) for key, v in tensors]
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; on CPUs torch raises a plain `RuntimeError`."""
    words = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
    text = str(error).lower()
    plain = isinstance(error, RuntimeError) and any(word in text for word in words)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or plain


def failing_layer(model: nn.Module, error: BaseException) -> str:
    """Name and kind of the innermost layer of a model that was computing when an error was raised; empty if none was.

    Read off the traceback, so it costs nothing before; a backward pass has layers there only where it computes again.
    """
    names = {module: name for name, module in model.named_modules() if name}
    inner = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            inner = f"{names[module]} ({type(module).__name__})"
    return inner


@contextmanager
def explained(engine: Engine, ledger: Ledger, step: int, phase: Callable[[], str]) -> Generator[None]:
    """Turn running out of memory into an error that helps.

    Args:
        engine: Trains.
        ledger: Has seen a forward pass.
        step: 0-based step.
        phase: Says what the training thread is in.

    Raises:
        TrainingError: Naming the layer that failed, the largest tensors and the lever to pull.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        layer = failing_layer(engine.module, error)
        where = f"in layer {layer} of the {phase()} pass" if layer else f"in {phase()}"
        raise TrainingError(report(states(engine), ledger.activations, engine, step, where)) from None


def report(held: list[Use], activations: list[Use], engine: Engine, step: int, where: str) -> str:
    """What takes the memory and what to do about it."""
    totals = {"weights": 0, "gradients": 0, "optimizer": 0}
    for use in held:
        totals[{"weight": "weights", "gradient": "gradients"}.get(use.kind, "optimizer")] += use.bytes
    totals["activations of one pass, at least"] = sum(use.bytes for use in activations)
    largest = sorted([*held, *activations], key=lambda use: -use.bytes)[:SHOWN]
    return (
        f"memory must hold a step, but ran out at step {step} {where}. Held on this rank: "
        f"{', '.join(f'{name} {count / 1e9:.2f} GB' for name, count in totals.items())}. "
        f"Largest: {'; '.join(use.text() for use in largest)}. "
        f"{'; '.join(levers(sum(use.bytes for use in held), activations, engine))}"
    )


def levers(held: int, activations: Iterable[Use], engine: Engine) -> list[str]:
    """What to change, the most useful first."""
    used = list(activations)
    passing = sum(use.bytes for use in used)
    stage, world = engine.zero_optimization_stage(), engine.dp_world_size
    smaller = [
        "recompute the stages of the finest levels in the backward pass (model.checkpoint_stages=0 1)",
        f"make micro-batches smaller (engine.accumulate, now {engine.gradient_accumulation_steps()}) or the patch",
    ]
    sharded: list[str] = []
    if world > 1 and stage < 3:
        sharded.append(f"shard more over the {world} ranks (engine.zero_stage, now {stage})")
    if torch.cuda.is_available():
        sharded.append("keep optimizer states in host memory (engine.offload=optimizer)")
    elif world == 1:
        sharded.append("use more ranks with engine.zero_stage 3, or a smaller model")
    return [*smaller, *sharded] if passing >= held else [*sharded, *smaller]


@contextmanager
def explained_start(weights: int, moments: int, config: EngineConfig) -> Generator[None]:
    """Turn running out of memory while an engine starts into an error that helps.

    Args:
        weights: Number of weights of the model.
        moments: Tensors of the optimizer for each.
        config: Stage, precision, offloading.

    Raises:
        TrainingError: Saying what the states need at least and the lever to pull.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(start_report(weights, moments, config, dist.world_size())) from None


def start_report(weights: int, moments: int, config: EngineConfig, world: int) -> str:
    """What the states of a model need on each rank, and what to do about it."""
    # In fp32 the optimizer steps on the weights themselves; stages 1 and 2 keep a copy of each rank's part.
    whole = 2 if config.precision == "bf16" else 4 if config.zero_stage in (1, 2) else 0
    own, shared = whole * weights, (4 + 4 * moments) * weights
    held = (own / world if config.zero_stage == 3 else own) + (shared / world if config.zero_stage else shared)
    levers: list[str] = []
    if world > 1 and config.zero_stage < 3:
        levers.append(f"shard more over the {world} ranks (engine.zero_stage, now {config.zero_stage})")
    if torch.cuda.is_available() and config.offload != "all":
        levers.append(f"keep states in host memory (engine.offload, now {config.offload})")
    levers.append("use more ranks with engine.zero_stage 3, or a smaller model")
    return (
        f"memory must hold the states of the model, but ran out while training started: {weights / 1e6:.1f} million "
        f"weights with their optimizer's states take at least {held / 1e9:.2f} GB on each of {world} ranks at "
        f"engine.zero_stage {config.zero_stage} in {config.precision}, gradients and activations apart. "
        f"{'; '.join(levers)}"
    )
