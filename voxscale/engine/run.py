"""A run folder: its config, its lock, and where it goes on."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxscale import dist
from voxscale.config import save_json, to_dict
from voxscale.engine import checkpoint
from voxscale.engine.types import Engine
from voxscale.errors import ConfigError
from voxscale.files import locked
from voxscale.models.stunet import initialise
from voxscale.seed import torch_generator


@contextmanager
def open_run(run: Path, config: object) -> Generator[None]:
    """Hold a run folder for these ranks and keep its config beside everything in it.

    Raises:
        ConfigError: On every rank, if the folder belongs to a run with another config.
        DataError: If another live process holds it.
    """
    with ExitStack() as stack:
        problem = ""
        if dist.rank() == 0:
            stack.enter_context(locked(run))
            problem = _same_config(run / "config.json", config)
        problem = dist.from_rank_0(problem)
        if problem:
            raise ConfigError(problem)
        yield


def _same_config(path: Path, config: object) -> str:
    if not path.exists():
        save_json(config, path)
        return ""
    have, want = json.loads(path.read_text()), to_dict(config)
    wrong = sorted(_differences(have, want))
    if not wrong:
        return ""
    return f"run must be a folder of its own for each config; this one differs in {', '.join(wrong)}; choose another"


def _differences(have: Any, want: Any, where: str = "") -> Iterator[str]:
    if isinstance(have, dict) and isinstance(want, dict):
        for key in have.keys() | want.keys():
            yield from _differences(have.get(key), want.get(key), f"{where}.{key}" if where else str(key))
    elif have != want:
        yield where


def find_checkpoint(run: Path) -> Path | None:
    """The checkpoint to go on from, the same on every rank."""
    found = checkpoint.latest(run) if dist.rank() == 0 else None
    name = dist.from_rank_0("" if found is None else found.name)
    return run / "checkpoints" / name if name else None


def first_weights(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """He-initialise a model from a seed and return its weights by name."""
    initialise(model, torch_generator(seed, "weights"))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def network_input(images: Tensor, engine: Engine, channels_last: bool) -> Tensor:
    """Images in the number type and memory layout of the engine's weights."""
    ready = images.to(next(engine.module.parameters()).dtype)
    return ready.contiguous(memory_format=torch.channels_last_3d) if channels_last else ready


def about(config: object, model: object, contract: object) -> Mapping[str, Any]:
    """What every checkpoint says of itself."""
    return {"model": to_dict(model), "contract": to_dict(contract), "config": to_dict(config)}
