"""Out of memory: which layer failed, which tensors are the largest, and which lever to pull."""

import dataclasses
import errno
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
        kind: `weight`, `gradient`, `optimizer`, `activation`, or `tensor` that a function had in hand.
        name: Parameter, module, or variable and function.
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
    mapped = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or plain or mapped


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


def in_hand(model: nn.Module, error: BaseException) -> list[Use]:
    """Tensors that the functions on the way to an error held, weights apart; each once, by its outermost name.

    As `failing_layer`, they are read off the traceback.
    """
    names = {module: name for name, module in model.named_modules() if name}
    seen = {id(p) for p in model.parameters()}
    found: list[Use] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        layer = isinstance(owner, nn.Module) and owner in names
        place = names[owner] if layer else frame.f_code.co_name
        for variable, value in frame.f_locals.items():
            for tensor in _tensors(value):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    found.append(Use("tensor", f"{variable} of {place}", tuple(tensor.shape), tensor.nbytes))
    return found


def _tensors(value: object, depth: int = 3) -> Iterator[Tensor]:
    """Those in a variable, and in what it holds."""
    inner: Iterable[object] = ()
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        inner = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if depth:
        for one in inner:
            yield from _tensors(one, depth - 1)


@contextmanager
def explained_look(engine: Engine, what: str, less: Sequence[str]) -> Generator[None]:
    """As `explained`, of what only looks at the network: without gradients, beside the steps.

    Args:
        engine: Holds the network.
        what: That looks, such as `the probe after step 10`.
        less: What makes it need less memory.

    Raises:
        TrainingError: Naming the layer that failed, the largest tensors and the lever to pull.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        layer = failing_layer(engine.module, error)
        smaller = f"make micro-batches smaller (engine.accumulate, now {engine.gradient_accumulation_steps()})"
        pull = [f"{smaller}, as a pass has as many images as in training"]
        where = f"in layer {layer}" if layer else "outside of the network's layers"
        used = in_hand(engine.module, error)
        pull = [*pull, *less] if layer else [*less, *pull]
        raise TrainingError(_told(what, where, states(engine), used, "tensors in hand", pull)) from None


@contextmanager
def explained_states(engine: Engine, what: str, less: Sequence[str] = ()) -> Generator[None]:
    """As `explained`, of what takes memory beside the passes: states of a checkpoint, a snapshot, a teacher.

    Args:
        engine: Trains.
        what: That must be held.
        less: What makes it need less memory, besides more ranks.

    Raises:
        TrainingError: Naming the largest tensors and the lever to pull.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        pull = [*less, *_sharded(engine)] or ["use a smaller model"]
        used = in_hand(engine.module, error)
        raise TrainingError(_told(what, "beside the steps", states(engine), used, "tensors in hand", pull)) from None


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
    pull = levers(sum(use.bytes for use in held), activations, engine)
    passing = "activations of one pass, at least"
    return _told("a step", f"at step {step} {where}", held, activations, passing, pull)


def _told(what: str, where: str, held: list[Use], used: list[Use], using: str, pull: Sequence[str]) -> str:
    totals = {"weights": 0, "gradients": 0, "optimizer": 0}
    for use in held:
        totals[{"weight": "weights", "gradient": "gradients"}.get(use.kind, "optimizer")] += use.bytes
    totals[using] = sum(use.bytes for use in used)
    largest = sorted([*held, *used], key=lambda use: -use.bytes)[:SHOWN]
    return (
        f"memory must hold {what}, but ran out {where}. Held on this rank: "
        f"{', '.join(f'{name} {count / 1e9:.2f} GB' for name, count in totals.items())}. "
        f"Largest: {'; '.join(use.text() for use in largest)}. "
        f"{'; '.join(pull)}"
    )


def levers(held: int, activations: Iterable[Use], engine: Engine) -> list[str]:
    """What to change, the most useful first."""
    passing = sum(use.bytes for use in activations)
    smaller = [
        "recompute the stages of the finest levels in the backward pass (model.checkpoint_stages=0 1)",
        f"make micro-batches smaller (engine.accumulate, now {engine.gradient_accumulation_steps()}) or the patch",
    ]
    sharded = _sharded(engine)
    return [*smaller, *sharded] if passing >= held else [*sharded, *smaller]


def _sharded(engine: Engine) -> list[str]:
    """How each rank holds less of the states."""
    stage, world = engine.zero_optimization_stage(), engine.dp_world_size
    sharded: list[str] = []
    if world > 1 and stage < 3:
        sharded.append(f"shard more over the {world} ranks (engine.zero_stage, now {stage})")
    if torch.cuda.is_available():
        sharded.append("keep optimizer states in host memory (engine.offload=optimizer)")
    elif world == 1:
        sharded.append("use more ranks with engine.zero_stage 3, or a smaller model")
    return sharded


@contextmanager
def explained_start(model: nn.Module, moments: int, config: EngineConfig) -> Generator[None]:
    """Turn running out of memory while an engine starts into an error that helps.

    Args:
        model: Before the engine takes it.
        moments: Tensors of the optimizer for each.
        config: Stage, precision, offloading.

    Raises:
        TrainingError: Saying what the states need at least, of which weights they are the most, and the lever to pull.
    """
    uses = [Use("weight", name, tuple(p.shape), p.nbytes) for name, p in model.named_parameters()]
    count = sum(p.numel() for p in model.parameters())
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(start_report(count, moments, config, dist.world_size(), uses)) from None


def start_report(weights: int, moments: int, config: EngineConfig, world: int, uses: Sequence[Use] = ()) -> str:
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
    largest = "; ".join(use.text() for use in sorted(uses, key=lambda use: -use.bytes)[: SHOWN // 2])
    return (
        f"memory must hold the states of the model, but ran out while training started: {weights / 1e6:.1f} million "
        f"weights with their optimizer's states take at least {held / 1e9:.2f} GB on each of {world} ranks at "
        f"engine.zero_stage {config.zero_stage} in {config.precision}, gradients and activations apart. "
        f"{f'Largest: {largest}. ' if largest else ''}"
        f"{'; '.join(levers)}"
    )
