"""The training loop: the only one, for every objective and every stage."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch import Tensor

from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import LoopConfig, OptimConfig
from voxscale.engine.deepspeed import set_learning_rate
from voxscale.engine.guard import Guard
from voxscale.engine.memory import Ledger, explained, explained_look, explained_states
from voxscale.engine.meter import Meter, own_peak
from voxscale.engine.pieces import Piece
from voxscale.engine.profile import Profiler
from voxscale.engine.run import find_checkpoint
from voxscale.engine.saver import Saver
from voxscale.engine.schedule import learning_rate
from voxscale.engine.state import write_weights
from voxscale.engine.tracker import Tracker
from voxscale.engine.types import Engine
from voxscale.engine.watchdog import RanksWatch, Watch
from voxscale.errors import PreemptedError, TrainingError
from voxscale.progress import Progress
from voxscale.signals import StopRequest, listening, name_of

Objective = Callable[[Engine, Batch], tuple[Losses, int]]
"""Maps an engine and a batch on its device to losses and the number of voxels the network saw."""


class Follower(Protocol):
    """What goes along with the weights, such as a teacher."""

    def update(self, step: int) -> None:
        """Follow an update of the weights; never called for a step that was skipped."""
        ...

    def pieces(self) -> Iterable[Piece]:
        """This rank's slices of what it keeps; they are saved with every checkpoint."""
        ...

    def restore(self, checkpoint: Path) -> None:
        """Stand where it stood when a checkpoint was saved."""
        ...


class Observer(Protocol):
    """What looks at the network between steps and leaves it as it is, such as probes."""

    @property
    def levers(self) -> Sequence[str]:
        """What makes it need less memory, in words."""
        ...

    def due(self, step: int) -> bool:
        """Whether to look after so many steps; the same on all ranks."""
        ...

    def observe(self, step: int) -> dict[str, float]:
        """Look; every rank calls, and what rank 0 returns is logged as a row of its own."""
        ...


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
    follower: Follower | None = None,
    flops: float = 0.0,
    observer: Observer | None = None,
    starting: RanksWatch | None = None,
) -> None:
    """Train from `start` to the last step.

    Longer than others: the one training loop is read from top to bottom.

    Args:
        name: Shown in the progress bar.
        engine: Holds weights, gradients and optimizer state.
        batches: Micro-batches of this rank, beginning at the start position.
        objective: The loss.
        loop: Number of steps, logging and checkpoint intervals, what is done about bad steps and lost ranks.
        optim: Learning-rate schedule.
        run: Run folder for checkpoints.
        start: Where the run stands.
        about: What every checkpoint says of itself.
        tracker: Writes metrics (rank 0), or None.
        follower: Told of every update of the weights, saved with them, and taken back with them.
        flops: Floating-point operations of one sample's training step, for TFLOP/s; 0 if they are not known.
        observer: Looks at the network before the first step and between steps.
        starting: What has watched the ranks until now; it is closed.

    Raises:
        TrainingError: If steps are bad again and again, memory runs out or the last checkpoint cannot be written.
        PreemptedError: If a signal asked any rank to end; the step is finished and saved.
    """
    meter = Meter(flops, loop.peak_tflops or own_peak(engine))
    guard = Guard(loop.guard, engine, run, start.extra.get("guard", {}))
    ledger = Ledger(engine.module)
    engine.train()
    with (
        listening() as request,
        Saver(run, engine, optim, loop, about, start) as saver,
        Progress(name, loop.steps, "steps", done=start.step, show=dist.rank() == 0) as bar,
        Watch(run, loop.watch, start.step) as watch,
        Profiler(run, loop.profile) as profiler,
    ):
        if starting is not None:
            starting.close()
        if follower is not None:
            saver.add(follower.pieces)
        if observer is not None and start.step == 0:
            look_at(observer, 0, engine, watch, meter, tracker)
        watch.at("collective")
        if stop := asked_to_stop(request):
            raise PreemptedError(f"{name} was ended by {stop} before its first step; start it again to go on", stop)
        for step in range(start.step, loop.steps):
            profiler.begin(step)
            lr = learning_rate(optim, step, loop.steps)
            set_learning_rate(engine, lr)
            with explained(engine, ledger, step, lambda: watch.phase):
                guard.begin()
                parts = forward_and_backward(engine, batches, objective, meter, watch, step)
                losses = [float(part.losses["loss"]) for part in parts]
                watch.at("collective")
                loss = guard.hear(losses)
                watch.at("optimizer")
                engine.step()  # which the guard may have dropped
                good = guard.settle(step, [(part.indices, value) for part, value in zip(parts, losses, strict=True)])
            ledger.close()
            if good:
                for part in parts:
                    meter.add(part.losses, len(set(part.indices)), part.voxels)
                if follower is not None:
                    follower.update(step)
            elif guard.must_go_back:
                watch.at("checkpoint")
                saver.settle()  # if that save failed, there is an older one
                saver.gone_back(go_back(engine, guard, optim, run, step, follower))
            done = step + 1
            watch.at("collective")
            stop = asked_to_stop(request)
            if done % loop.log_every == 0 or done == loop.steps:
                row = meter.line(done, lr, guard.norm) | {"skipped": guard.skipped}
                if tracker is not None:
                    tracker.log(row)
            if observer is not None:
                look_at(observer, done, engine, watch, meter, tracker)
            # Within a row of bad steps nothing is saved: the weights are suspected.
            if (done % loop.checkpoint_every == 0 and not guard.in_a_row) or done == loop.steps or stop:
                watch.at("checkpoint")
                began = time.monotonic()
                with explained_states(engine, f"a snapshot of step {done} in host memory"):
                    saver.save(Position(done, done * loop.batch, {"guard": guard.saved()}))
                meter.saved += time.monotonic() - began
            if stop:
                end_early(saver, name, stop, done)
            bar.advance(1, note=f"loss {loss:.3f}")
        watch.at("checkpoint")
        saver.finish()


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of one micro-batch of this rank.

    Attributes:
        indices: Global indices of its samples.
        losses: Detached scalars: `loss`, and each term and watched value by name.
        voxels: That the network saw.
    """

    indices: tuple[int, ...]
    losses: dict[str, Tensor]
    voxels: int


def forward_and_backward(
    engine: Engine, batches: Iterator[Batch], objective: Objective, meter: Meter, watch: Watch, step: int
) -> list[Part]:
    """Sum up the gradients of all micro-batches of a step."""
    parts: list[Part] = []
    count = engine.gradient_accumulation_steps()
    for part in range(count):
        watch.at("data", step)
        began = time.monotonic()
        batch = next(batches).to(engine.device)
        meter.waited += time.monotonic() - began
        watch.at("forward", step, batch.indices)
        engine.set_gradient_accumulation_boundary(part == count - 1)  # only then stages 0 and 1 reduce gradients
        with meter.forward(engine.device):
            losses, voxels = objective(engine, batch)
            total = losses.total
        watch.at("backward")
        engine.backward(total)
        values = {"loss": total, **losses.terms, **losses.watched}
        parts.append(Part(batch.indices, {name: value.detach() for name, value in values.items()}, voxels))
    return parts


def look_at(observer: Observer, step: int, engine: Engine, watch: Watch, meter: Meter, tracker: Tracker | None) -> None:
    """Have an observer look, if it wants to, and log what it saw."""
    if not observer.due(step):
        return
    watch.at("probe", step)
    began = time.monotonic()
    with explained_look(engine, f"the probe after step {step}", observer.levers):
        row = observer.observe(step)
    meter.probed += time.monotonic() - began
    if tracker is not None:
        tracker.log({"step": step} | row)


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


def go_back(engine: Engine, guard: Guard, optim: OptimConfig, run: Path, step: int, follower: Follower | None) -> int:
    """Take weights, moments and what follows them from the last good checkpoint; the data go on behind the bad samples.

    One that a signal had saved within the row is passed over: its weights are suspected.

    All samples since that checkpoint are left behind with them, as those just
    before a divergence are part of its cause (Chowdhery et al. 2022, PaLM, section 5.1).

    Returns:
        Step of that checkpoint.

    Raises:
        TrainingError: If there is no good checkpoint yet, or the run went back to it before.
    """
    found = find_checkpoint(run, trusted=True)
    if found is None:
        raise TrainingError(guard.diagnosis("there is no good checkpoint yet to go back to"))
    if checkpoint.step_of(found) == guard.back_to:  # no save has worked since
        raise TrainingError(guard.diagnosis(f"the run had already gone back to its last checkpoint, {found.name}"))
    write_weights(engine, checkpoint.load_weights(found))
    to = checkpoint.restore(found, engine, optim).step
    if follower is not None:
        follower.restore(found)  # after the buffers, which it takes over from the engine
    guard.gone_back(step, to)
    return to
