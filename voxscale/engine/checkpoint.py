"""Checkpoints on disk: which there are, whether they are whole, what is in them.

A checkpoint is a folder `step-00000100` of safetensors and JSON, written by
`voxscale.engine.saver`. It exists under that name only when it is whole;
`manifest.json` holds the size and SHA-256 of every other file. Nothing in it
is a pickle, and nothing here unpickles.
"""

import hashlib
import json
import logging
import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxscale import dist
from voxscale.engine.config import OptimConfig
from voxscale.engine.optim import moment_names
from voxscale.engine.pieces import Stored, own_buffers
from voxscale.engine.types import Engine
from voxscale.errors import CheckpointError
from voxscale.files import sha256_file

log = logging.getLogger("voxscale")

SCHEMA = 2
SLICES = "state-*.safetensors"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands.

    Attributes:
        step: Finished optimizer steps (the learning rate is a function of it).
        samples: Global samples consumed: the data position, whatever the number of ranks.
        extra: Plain values that the loop must know again, such as counts of skipped steps.
    """

    step: int = 0
    samples: int = 0
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def steps(run: Path) -> list[Path]:
    """All checkpoints of a run by step, undamaged or not."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((p for p in found if p.is_dir() and p.name[5:].isdecimal()), key=step_of)


def manifest_text(files: dict[str, dict[str, Any]]) -> str:
    """What `manifest.json` holds: it names every file and vouches for itself, so that no flipped bit goes unseen."""
    inner = json.dumps({"schema": SCHEMA, "files": files}, sort_keys=True)
    own = hashlib.sha256(inner.encode()).hexdigest()
    return json.dumps({"schema": SCHEMA, "files": files, "sha256": own}, indent=1, sort_keys=True) + "\n"


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: Naming the first file that is missing, cut or changed.
    """
    try:
        text = (checkpoint / "manifest.json").read_text()
        manifest: dict[str, Any] = json.loads(text)
        schema, files = manifest.get("schema"), dict[str, dict[str, Any]](manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{checkpoint.name} must hold a readable manifest.json") from None
    if isinstance(schema, int) and schema < SCHEMA:
        raise CheckpointError(f"{checkpoint.name} must be of schema {SCHEMA}, not {schema}")
    if text != manifest_text(files):
        raise CheckpointError(f"{checkpoint.name}/manifest.json must be as it was written, not changed")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter to others
        same = pool.map(_unchanged, [checkpoint / name for name in files], files.values())
        wrong = [name for name, good in zip(files, same, strict=True) if not good]
    if wrong:
        raise CheckpointError(f"{checkpoint.name}/{wrong[0]} must be as its manifest says, not missing or changed")


def _unchanged(path: Path, known: dict[str, Any]) -> bool:
    try:
        return path.stat().st_size == known["bytes"] and sha256_file(path) == known["sha256"]
    except OSError:
        return False


def suspected(checkpoint: Path) -> bool | None:
    """Whether it was saved within a row of bad steps, whose cause its weights may be; None if it cannot be read."""
    try:
        about: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        return about["position"]["extra"].get("guard", {}).get("in_a_row", 0) > 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def superseded(found: Sequence[Path], keep: int, every: int) -> list[Path]:
    """Which checkpoints are not needed any more.

    The `keep` newest good ones are, as a run may have to go back to them, and a suspected one while it is the newest.

    Args:
        found: Checkpoints by step.
        keep: How many good ones are kept; one that cannot be read is not counted, and is never deleted.
        every: Those of multiples of this step are kept for good; 0 keeps none so.
    """
    out: list[Path] = []
    good = 0
    for checkpoint in reversed(found):
        for_good = every > 0 and step_of(checkpoint) % every == 0
        if for_good and good >= keep:
            continue
        state = suspected(checkpoint)
        needed = for_good or state is None or (checkpoint == found[-1] if state else good < keep)
        out += [] if needed else [checkpoint]
        good += state is False
    return out


def latest(run: Path, *, trusted: bool = False) -> Path | None:
    """The newest undamaged checkpoint of a run, or None if the run has none at all.

    A damaged one is named in a warning and passed over; it is never deleted.

    Args:
        run: Run folder.
        trusted: Whether those that were saved within a row of bad steps do not count.

    Raises:
        CheckpointError: If there are checkpoints but every one is damaged.
    """
    found = [path for path in steps(run) if not (trusted and suspected(path))]
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            log.warning("%s; using the checkpoint before it", error)
            continue
        return checkpoint
    if found:
        raise CheckpointError(
            f"run {run.name} must hold an undamaged checkpoint; all {len(found)} are damaged: copy one back from a "
            "backup, or name another run folder to begin anew"
        )
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


def stored(checkpoint: Path, kind: str) -> Stored:
    """Tensors of one kind by parameter name (`weights`, a moment, a set that was added such as `ema`).

    They are read when asked for, whole or in part, and empty if the checkpoint holds none of this kind.

    Raises:
        CheckpointError: If slices are missing.
    """
    return Stored(checkpoint.glob(SLICES), kind)


def load_weights(checkpoint: Path) -> Stored:
    """Whole fp32 weights by parameter name, each put together from the ranks' slices when it is asked for.

    Raises:
        CheckpointError: If the folder holds none.
    """
    weights = stored(checkpoint, "weights")
    if not weights:
        raise CheckpointError(f"{checkpoint.name} must hold weights in files {SLICES}; it is not one of ours")
    return weights


def load_buffers(checkpoint: Path) -> dict[str, Tensor]:
    """Buffers by name, such as running statistics of batch norms, as rank 0 had them."""
    return own_buffers(stored(checkpoint, "buffers"), 0)


def load_model(checkpoint: Path) -> Mapping[str, Tensor]:
    """Weights and buffers by name, as a model's state dict has them; weights are read when asked for.

    Raises:
        CheckpointError: If the folder holds no weights.
    """
    return ChainMap(load_buffers(checkpoint), load_weights(checkpoint))  # pyright: ignore[reportArgumentType]  # read only


def restore(checkpoint: Path, engine: Engine, optim: OptimConfig) -> Position:
    """Put an engine, already holding the checkpoint's weights, where the run stood; every rank must call.

    Each rank reads its own slices only, whatever world size and ZeRO stage wrote them.

    Raises:
        CheckpointError: If the buffers are not the model's own.
        TrainingError: If memory runs out.
    """
    # Reading needs no DeepSpeed, so weights are exported where it is not installed.
    from voxscale.engine.memory import explained_states
    from voxscale.engine.state import make_moments, write_buffers, write_moment

    about = read_about(checkpoint)
    with explained_states(engine, "the optimizer's states of a checkpoint"):
        make_moments(engine, moment_names(optim), about["updates"])
        for moment in moment_names(optim):
            write_moment(engine, moment, stored(checkpoint, moment))
    write_buffers(engine, own_buffers(stored(checkpoint, "buffers"), dist.rank()))
    states = stored(checkpoint, "rng")
    own = f"rank{dist.rank()}"
    if own in states:  # a larger world has ranks that the checkpoint does not know; nothing here draws from this state
        torch.set_rng_state(states[own])
    if torch.cuda.is_available() and f"cuda{dist.rank()}" in states:
        torch.cuda.set_rng_state(states[f"cuda{dist.rank()}"])
    return Position(**about["position"])
