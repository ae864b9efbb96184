"""Bad steps: one whose loss or gradient is not finite or explodes is skipped by all ranks alike, and recorded."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from voxscale import dist
from voxscale.engine.config import GuardConfig
from voxscale.engine.drop import dropped, forget_gradients, judge_steps
from voxscale.engine.types import Engine
from voxscale.errors import TrainingError
from voxscale.incidents import note
from voxscale.models.recompute import running_statistics, take_back

log = logging.getLogger("voxscale")

LEAST_SPREAD = 0.1
"""A standard deviation counts as at least this share of the median, so that very even values are not a trap."""


def limit(values: Sequence[float], config: GuardConfig) -> float:
    """The value above which the next one explodes: median + sigma robust standard deviations.

    The deviation is 1.4826 times the median distance from the median, which
    is the standard deviation of normal values and does not see outliers
    (Hampel 1974, "The influence curve and its role in robust estimation").

    Args:
        values: Those of the last good steps.
        config: Sigma, and how many values are needed; with fewer the limit is infinite.
    """
    if config.sigma == 0 or len(values) < (config.window + 1) // 2:
        return math.inf
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return middle + config.sigma * max(spread, LEAST_SPREAD * abs(middle))


@dataclass(frozen=True, slots=True)
class Bad:
    """Why a step was skipped.

    Attributes:
        step: 0-based step.
        what: `loss` or `gradient norm`.
        value: Its value over all ranks.
        limit: What it had to stay below.
        samples: For each rank, (sample indices, loss) of each micro-batch.
    """

    step: int
    what: str
    value: float
    limit: float
    samples: list[list[tuple[list[int], float]]]

    def text(self) -> str:
        """One line for a person; names the samples of the micro-batches that are bad by themselves, else all."""
        parts = [part for rank in self.samples for part in rank]
        bad = [part for part in parts if not math.isfinite(part[1]) or (self.what == "loss" and part[1] > self.limit)]
        ids = sorted({index for indices, _ in bad or parts for index in indices})
        condition = f"below {self.limit:.4g}" if math.isfinite(self.limit) else "finite"
        return f"{self.what} at step {self.step} must be {condition}, not {self.value:.4g}; samples {ids}"


class Guard:
    """Judges every step of a run.

    Args:
        config: Limits.
        engine: The engine whose steps are judged.
        run: Run folder; skipped steps are recorded in `incidents-rank0.jsonl`.
        state: What `state` returned when the checkpoint was saved that the run goes on from.

    Attributes:
        norm: Gradient norm of the last step over all ranks, before clipping.
        skipped: Steps skipped so far.
        in_a_row: Steps skipped since the last good one.
        back_to: Step of the checkpoint that the run last went back to; -1 if it never did.
    """

    def __init__(self, config: GuardConfig, engine: Engine, run: Path, state: dict[str, Any]) -> None:
        self._config, self._engine = config, engine
        self._file = run / "incidents-rank0.jsonl"
        self._losses = deque[float](state.get("losses", ()), config.window)
        self._norms = deque[float](state.get("norms", ()), config.window)
        # Whether the run stands on older weights again, of which no step has been saved yet.
        self._went_back: bool = state.get("went_back", False)
        self._moved_on: bool = state.get("moved_on", False)
        self.skipped: int = state.get("skipped", 0)
        self.in_a_row: int = state.get("in_a_row", 0)
        self.back_to: int = state.get("back_to", -1)
        self.norm = self._loss = math.nan
        self._told: list[Bad] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []
        judge_steps(engine, self._drops)

    def state(self) -> dict[str, Any]:
        """Plain values to be kept in a checkpoint."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "went_back": self._went_back,
            "moved_on": self._moved_on,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "back_to": self.back_to,
        }

    def begin(self) -> None:
        """Take note of the running statistics of norms, before the forward passes of a step change them."""
        self._statistics = [(value, value.clone()) for value in running_statistics(self._engine.module)]

    def hear(self, losses: Iterable[float]) -> float:
        """Take note of this rank's losses of one step, before the optimizer's step; every rank must call.

        Returns:
            The mean over micro-batches and ranks, which is not finite if any of them is not.
        """
        own = list(losses)
        sums, count = dist.total([sum(own), float(len(own))])
        self._loss, self.norm = sums / count, math.inf
        return self._loss

    def _drops(self, norm: float) -> bool:
        """Whether the step is dropped; equal on all ranks, because loss and norm are."""
        self.norm = norm
        return not (self._good(self._loss, self._losses) and self._good(norm, self._norms))

    def _good(self, value: float, before: Sequence[float]) -> bool:
        return math.isfinite(value) and value <= limit(before, self._config)

    def settle(self, step: int, parts: Sequence[tuple[Sequence[int], float]]) -> bool:
        """Count the step that the engine has just made or dropped; every rank must call.

        Running statistics of a dropped step, to which every rank's bad and good samples
        have added, are taken back.

        Args:
            step: 0-based step.
            parts: Sample indices and loss of each of this rank's micro-batches.

        Returns:
            Whether it was made.

        Raises:
            TrainingError: If steps are bad in a row again although the run went back to older weights.
        """
        if not (dropped(self._engine) or self._drops(self.norm)):
            self._losses.append(self._loss)
            self._norms.append(self.norm)
            self.in_a_row = 0
            self._moved_on = True
            self._told = []
            return True
        forget_gradients(self._engine)
        take_back(self._statistics)
        self.skipped += 1
        self.in_a_row += 1
        self._record(step, parts)
        if self.must_go_back and self._went_back:
            raise TrainingError(self.diagnosis("the run had already gone back to older weights"))
        return False

    @property
    def must_go_back(self) -> bool:
        """Whether so many steps were bad in a row that the weights must be suspected."""
        return self.in_a_row >= self._config.in_a_row

    def _record(self, step: int, parts: Sequence[tuple[Sequence[int], float]]) -> None:
        all_parts: list[Any] = dist.gather([(list(indices), loss) for indices, loss in parts])
        is_loss = not self._good(self._loss, self._losses)
        what, value = ("loss", self._loss) if is_loss else ("gradient norm", self.norm)
        bad = Bad(step, what, value, limit(self._losses if is_loss else self._norms, self._config), all_parts)
        self._told.append(bad)
        if dist.rank() == 0:
            log.warning("step skipped (%d so far): %s", self.skipped, bad.text())
            ranks = [[{"samples": i, "loss": _plain(loss)} for i, loss in rank] for rank in all_parts]
            row = {"kind": "bad_step", "step": step, "what": what, "value": _plain(value), "limit": _plain(bad.limit)}
            note(self._file, row | {"grad_norm": _plain(self.norm), "ranks": ranks})

    def gone_back(self, step: int, to: int) -> None:
        """Note that the weights are those of the checkpoint of step `to` again."""
        self._went_back, self._moved_on, self.in_a_row = True, False, 0
        self.back_to = to
        if dist.rank() == 0:
            log.warning(
                "went back to the weights of step %d after %d bad steps in a row; the samples of steps %d to %d are "
                "left behind",
                *(to, self._config.in_a_row, to, step),
            )
            note(self._file, {"kind": "went_back", "step": step, "to": to})

    def saved(self) -> dict[str, Any]:
        """The state to save with a checkpoint; one with good new steps in it may be gone back to again."""
        if self._moved_on and not self.in_a_row:
            self._went_back = False
        return self.state()

    def diagnosis(self, why: str) -> str:
        """What to tell a person when nothing more can be done."""
        seen = "; ".join(bad.text() for bad in self._told[-self._config.in_a_row :])
        return (
            f"training must make good steps, not {self.in_a_row} bad ones in a row, and {why}. Seen: {seen}. Look at "
            "these samples; if they are sound, lower optim.lr or engine.clip, lengthen optim.warmup, or, where values "
            "are finite and right, raise loop.guard.sigma (0 skips only what is not finite)"
        )


def _plain(value: float) -> float | str:
    """A number that JSON knows, or its name."""
    return value if math.isfinite(value) else str(value)
