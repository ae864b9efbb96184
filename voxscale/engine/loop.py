"""The training loop: the only one, for every objective and every stage."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import LoopConfig, OptimConfig
from voxscale.engine.deepspeed import set_learning_rate
from voxscale.engine.meter import Meter
from voxscale.engine.saver import Saver
from voxscale.engine.schedule import learning_rate
from voxscale.engine.signals import StopRequest, listening, name_of
from voxscale.engine.tracker import Tracker
from voxscale.engine.types import Engine
from voxscale.errors import PreemptedError, TrainingError
from voxscale.progress import Progress

Objective = Callable[[Engine, Batch], tuple[Losses, int]]
"""Maps an engine and a batch on its device to losses and the number of voxels the network saw."""


def train(
    name: str,
    engine: Engine,
    batches: Iterator[Batch],
    objective: Objective,
    loop: LoopConfig,
    optim: OptimConfig,
    run: Path,
    start: Position,
    about: dict[str, Any],
    tracker: Tracker | None,
) -> None:
    """Train from `start` to the last step.

    Args:
        name: Shown in the progress bar.
        engine: Holds weights, gradients and optimizer state.
        batches: Micro-batches of this rank, beginning at the start position.
        objective: The loss.
        loop: Number of steps, logging and checkpoint intervals.
        optim: Learning-rate schedule.
        run: Run folder for checkpoints.
        start: Where the run stands.
        about: What every checkpoint says of itself.
        tracker: Writes metrics (rank 0), or None.

    Raises:
        TrainingError: Naming the step, if a loss or gradient is not finite or the last checkpoint cannot be written.
        PreemptedError: If a signal asked any rank to end; the step is finished and saved.
    """
    meter = Meter()
    engine.train()
    with (
        listening() as request,
        Saver(run, engine, optim, loop, about, start) as saver,
        Progress(name, loop.steps, "steps", done=start.step, show=dist.rank() == 0) as bar,
    ):
        for step in range(start.step, loop.steps):
            lr = learning_rate(optim, step, loop.steps)
            set_learning_rate(engine, lr)
            loss = 0.0
            for _ in range(engine.gradient_accumulation_steps()):
                loss = micro_step(engine, batches, objective, meter, step)
            norm = float(engine.get_global_grad_norm() or 0.0)
            require_finite("gradient norm", norm, step)
            done = step + 1
            stop = asked_to_stop(request)
            if done % loop.log_every == 0 or done == loop.steps:
                row = meter.line(done, lr, norm)
                if tracker is not None:
                    tracker.log(row)
            if done % loop.checkpoint_every == 0 or done == loop.steps or stop:
                saver.save(Position(done, done * loop.batch))
            if stop and done < loop.steps:
                end_early(saver, name, stop, done)
            bar.advance(1, note=f"loss {loss:.3f}")
        saver.finish()


def micro_step(engine: Engine, batches: Iterator[Batch], objective: Objective, meter: Meter, step: int) -> float:
    """Forward and backward of one micro-batch; the engine updates the weights with the last one of a step.

    Returns:
        This rank's loss.
    """
    began = time.monotonic()
    batch = next(batches).to(engine.device)
    meter.waited += time.monotonic() - began
    losses, voxels = objective(engine, batch)
    loss = float(losses.total.detach())
    require_finite("loss", loss, step, batch.indices)
    engine.backward(losses.total)
    engine.step()
    meter.add(losses, len(set(batch.indices)), voxels)
    return loss


def asked_to_stop(request: StopRequest) -> str:
    """Name of a signal that asked any rank to end, the same on all ranks; empty if none did."""
    worst, *_ = dist.largest([float(request.number)])
    return name_of(int(worst)) if worst else ""


def end_early(saver: Saver, name: str, stop: str, done: int) -> NoReturn:
    """Wait for the save, then end as a signal asked; a save that failed is no reason not to start again.

    Raises:
        PreemptedError: Always.
    """
    try:
        saver.finish()
        state = f"step {done} is saved"
    except TrainingError as error:
        state = f"only an older checkpoint is saved ({error})"
    raise PreemptedError(f"{name} was ended by {stop} after step {done}: {state}; start it again to go on", stop)


def require_finite(what: str, value: float, step: int, indices: tuple[int, ...] = ()) -> None:
    """Stop all ranks alike if the value is not finite on any of them.

    Raises:
        TrainingError: Naming the step and, if given, the samples of this rank.
    """
    bad, *_ = dist.total([0.0 if math.isfinite(value) else 1.0])
    if bad:
        samples = f"; this rank had samples {list(indices)}" if indices else ""
        raise TrainingError(
            f"{what} at step {step} must be finite on every rank, not {value} here and not finite on {int(bad)} of "
            f"{dist.world_size()}{samples}: lower optim.lr or look at these samples"
        )
