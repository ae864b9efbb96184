"""Checkpoints that a crash cannot spoil: written beside, flushed, listed with hashes, renamed.

A checkpoint is a folder `step-00000100` of safetensors and JSON. It exists
under that name only when it is whole; `manifest.json` holds the SHA-256 of
every other file. Nothing in it is a pickle, and nothing here unpickles.
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from voxscale import dist
from voxscale.engine.config import OptimConfig
from voxscale.engine.optim import moment_names
from voxscale.engine.state import read_moments, read_weights, write_moments
from voxscale.engine.types import Engine
from voxscale.errors import CheckpointError, TrainingError
from voxscale.files import commit_folder, sha256_file, sync_tree

log = logging.getLogger("voxscale")

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands.

    Attributes:
        step: Finished optimizer steps (the learning rate is a function of it).
        samples: Global samples consumed: the data position, whatever the number of ranks.
    """

    step: int = 0
    samples: int = 0


def save(
    run: Path,
    engine: Engine,
    optim: OptimConfig,
    position: Position,
    about: dict[str, Any],
    keep: int,
) -> Path:
    """Save a checkpoint; every rank must call.

    Args:
        run: Run folder; the checkpoint lands in `run/checkpoints`.
        engine: The engine to save.
        optim: Tells which moments there are.
        position: Where the run stands.
        about: Plain values that make the weights usable: model config, input contract, stage config.
        keep: Newest checkpoints to keep.

    Raises:
        TrainingError: On every rank, if rank 0 could not write (such as a full disk); older checkpoints stay.
    """
    weights = _on_rank_0(read_weights(engine))
    moments = _on_rank_0(read_moments(engine, moment_names(optim)))
    rng = {f"rank{r}": state for r, state in enumerate(dist.gather(torch.get_rng_state()))}
    folder = run / "checkpoints"
    target = folder / f"step-{position.step:08d}"
    problem = ""
    if dist.rank() == 0:
        state = {"schema": SCHEMA, "position": asdict(position), "world_size": dist.world_size(), **about}
        try:
            _write(target, weights, moments, rng, state)
            _prune(folder, keep)
        except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
            shutil.rmtree(_beside(target), ignore_errors=True)
            problem = getattr(error, "strerror", None) or str(error)
    problem = dist.from_rank_0(problem)
    if problem:
        raise TrainingError(
            f"checkpoint at step {position.step} must be written whole, but: {problem}; "
            "free some disk and start again, the run goes on from the checkpoint before"
        )
    return target


def _on_rank_0(named: Any) -> dict[str, Tensor]:
    """Drain a collective iterator on every rank, but hold its tensors on rank 0 only."""
    keep = dist.rank() == 0
    return {name: value for name, value in ((n, v if keep else None) for n, v in named) if value is not None}


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp")


def _write(
    target: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], rng: dict[str, Any], state: dict[str, Any]
) -> None:
    beside = _beside(target)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(weights, beside / "model.safetensors")
    save_file(moments, beside / "optim.safetensors")
    save_file(rng, beside / "rng.safetensors")
    (beside / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    sync_tree(beside)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(beside.iterdir())}
    (beside / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "files": files}, indent=1) + "\n")
    commit_folder(beside, target)


def _prune(folder: Path, keep: int) -> None:
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: Naming the first file that is missing, cut or changed.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
    except (OSError, ValueError, KeyError):
        raise CheckpointError(f"{checkpoint.name} must hold a readable manifest.json") from None
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{checkpoint.name} must be of schema {SCHEMA}, not {manifest.get('schema')}")
    for name, known in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != known["bytes"] or sha256_file(path) != known["sha256"]:
            raise CheckpointError(f"{checkpoint.name}/{name} must be as its manifest says, not missing or changed")


def latest(run: Path) -> Path | None:
    """The newest undamaged checkpoint of a run, or None if the run has none at all.

    A damaged one is named in a warning and passed over; it is never deleted.

    Raises:
        CheckpointError: If there are checkpoints but every one is damaged.
    """
    steps = _steps(run / "checkpoints")
    for checkpoint in reversed(steps):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            log.warning("%s; using the checkpoint before it", error)
            continue
        return checkpoint
    if steps:
        raise CheckpointError(f"run {run.name} must hold an undamaged checkpoint; all {len(steps)} are damaged")
    return None


def read_about(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: position, model config, input contract, stage config.

    Raises:
        CheckpointError: If it does not say all of it.
    """
    about: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    missing = sorted({"position", "model", "contract"} - about.keys())
    if missing:
        raise CheckpointError(f"{checkpoint.name}/state.json must name {', '.join(missing)}; it is not one of ours")
    return about


def keep_weights_only(run: Path) -> None:
    """Reduce a finished run to its newest weights, in `run/weights`; the moments take twice their room."""
    found = latest(run)
    if found is not None:
        beside = run / ".weights.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for name in ("model.safetensors", "state.json"):
            shutil.copy2(found / name, beside / name)
        commit_folder(beside, run / "weights")
        shutil.rmtree(run / "checkpoints")


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Whole fp32 weights by parameter name."""
    return load_file(checkpoint / "model.safetensors")


def restore(checkpoint: Path, engine: Engine, optim: OptimConfig) -> Position:
    """Put an engine, already holding the checkpoint's weights, where the run stood; every rank must call."""
    position = Position(**read_about(checkpoint)["position"])
    write_moments(engine, load_file(checkpoint / "optim.safetensors"), moment_names(optim), position.step)
    rng = load_file(checkpoint / "rng.safetensors")
    own = f"rank{dist.rank()}"
    if own in rng:  # a larger world has ranks that the checkpoint does not know; nothing here draws from this state
        torch.set_rng_state(rng[own])
    return position
