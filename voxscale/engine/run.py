"""A run folder: its config, its lock, and where it goes on."""

import json
import logging
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from voxscale import dist
from voxscale.config import save_json, to_dict
from voxscale.engine import checkpoint
from voxscale.engine.layout import channels_last
from voxscale.engine.types import Engine
from voxscale.errors import CheckpointError, ConfigError, DataError, system_error_text
from voxscale.files import locked, write_json
from voxscale.seed import torch_generator

log = logging.getLogger("voxscale")

HOW = (
    *("engine.zero_stage", "engine.offload", "engine.accumulate", "loader", "tracker"),
    *("loop.watch", "loop.profile", "loop.peak_tflops"),
    *("loop.log_every", "loop.checkpoint_every", "loop.keep", "loop.keep_every"),
)
"""Settings of how a run is computed and what it leaves behind, not of what it computes: as the number of ranks, they
may differ when it goes on, on another machine or because memory ran out. Of accumulation that is not quite so, and
told: losses that are no mean over samples, and batch norms, see another number of samples together."""


@contextmanager
def open_run(run: Path, config: object, inputs: Mapping[str, str], fixed: Collection[str] = ()) -> Generator[None]:
    """Hold a run folder for these ranks and keep its config beside everything in it.

    Args:
        run: The run folder.
        config: The stage's config; its paths may differ when the run goes on, as folders may be moved, and so may
            what `HOW` names. The folder keeps the first one; each checkpoint says which it was saved under.
        inputs: Hash of each thing that the run reads, which may not differ.
        fixed: What of `HOW` may not differ either, such as where trainings of one run are compared.

    Raises:
        ConfigError: On every rank, if the folder belongs to a run with another config or other inputs.
        DataError: On every rank, if another live process holds it.
    """
    with ExitStack() as stack:
        problem = ""
        if dist.rank() == 0:
            try:
                stack.enter_context(locked(run))
                problem = _claim(run, config, inputs, fixed)
            except (DataError, OSError) as error:
                problem = str(error) if isinstance(error, DataError) else system_error_text(error)
        problem = dist.from_rank_0(problem)
        if problem:
            raise ConfigError(problem)
        yield


def _claim(run: Path, config: object, inputs: Mapping[str, str], fixed: Collection[str]) -> str:
    """Write config and inputs into a new run folder, or say how they differ from an older run's."""
    if not (run / "config.json").exists():
        write_json(run / "inputs.json", dict(inputs))
        save_json(config, run / "config.json")
        return ""
    have = json.loads((run / "config.json").read_text()) | {"inputs": json.loads((run / "inputs.json").read_text())}
    want = to_dict(config) | {"inputs": dict(inputs)}
    other = sorted(where for where in _differences(have, want) if not _is_path(_value(config, where)))
    free = tuple(f"{name}." for name in HOW if name not in fixed)
    wrong = [where for where in other if not f"{where}.".startswith(free)]
    if not wrong:
        if other:
            log.info("the run goes on as it began but for %s", ", ".join(other))
        if "engine.accumulate" in other:
            log.warning(
                "engine.accumulate is %s, no longer %s: losses over the samples of a micro-batch (Dice, contrasts, "
                "deviations) and batch norms see another number of them than the run began with",
                *(each["engine"].get("accumulate") for each in (want, have)),
            )
        return ""
    return f"run must be a folder of its own for each config; this one differs in {', '.join(wrong)}; choose another"


def _is_path(value: object) -> bool:
    """Whether it is a path, or several."""
    several = isinstance(value, tuple) and bool(value) and all(isinstance(part, Path) for part in value)
    return isinstance(value, Path) or several


def _value(config: object, where: str) -> object:
    """The value at a dotted name; None where there is none."""
    for name in where.split("."):
        config = getattr(config, name, None)
    return config


def _differences(have: Any, want: Any, where: str = "") -> Iterator[str]:
    if isinstance(have, dict) and isinstance(want, dict):
        for key in have.keys() | want.keys():
            yield from _differences(have.get(key), want.get(key), f"{where}.{key}" if where else str(key))
    elif have != want:
        yield where


def find_checkpoint(run: Path, *, trusted: bool = False) -> Path | None:
    """The checkpoint to go on from, the same on every rank.

    Args:
        run: Run folder.
        trusted: Whether those that were saved within a row of bad steps do not count.

    Raises:
        CheckpointError: On every rank, if all checkpoints are damaged.
    """
    name, problem = "", ""
    if dist.rank() == 0:
        try:
            found = checkpoint.latest(run, trusted=trusted)
            name = "" if found is None else found.name
        except CheckpointError as error:
            problem = str(error)
    name, problem = dist.from_rank_0(name), dist.from_rank_0(problem)
    if problem:
        raise CheckpointError(problem)
    return run / "checkpoints" / name if name else None


class Seeded(Protocol):
    """A network that draws its weights from one generator."""

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights afresh and set all buffers."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As `nn.Module` has it."""
        ...


def first_weights(model: Seeded, seed: int) -> dict[str, Tensor]:
    """Initialise a model from a seed and return its weights by name, which are those of the model, not copies.

    An engine in bf16 or with ZeRO gives the model other tensors, so these stay as they are. Let go of them once it
    has started: they have the size of the model in fp32.
    """
    model.initialise(torch_generator(seed, "weights"))
    return {name: p.detach() for name, p in model.named_parameters()}


def network_input(images: Tensor, engine: Engine, last: bool) -> Tensor:
    """Images in the number type of the engine's weights, and channels-last if `last` is true."""
    ready = images.to(next(engine.module.parameters()).dtype)
    return channels_last(ready) if last else ready


def about(config: object, model: object, contract: object) -> Mapping[str, Any]:
    """What every checkpoint says of itself."""
    return {"model": to_dict(model), "contract": to_dict(contract), "config": to_dict(config)}
