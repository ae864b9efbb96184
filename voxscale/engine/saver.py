"""Saving while training goes on: a snapshot in memory, written by a thread, published only when it is whole.

Each rank copies its slices of the state into host memory, and a thread of its
own writes, flushes and hashes that as one file beside the checkpoints, in
`.step-00000100.<run>.tmp`. When a file is on disk, its rank leaves a note
`<file>.done` there, or `<file>.failed`. Rank 0's thread waits for the notes of all
ranks, then writes `state.json` and last `manifest.json`, flushes, and renames the
folder; of a save that failed it removes it, so that a full disk has room again.
The threads speak through these files only: collectives belong to training,
and the main threads use them between two steps to agree on how a save went.
"""

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from voxscale import dist
from voxscale.engine.checkpoint import (
    SCHEMA,
    Position,
    folder_of,
    step_of,
    steps,
    superseded,
    suspected,
)
from voxscale.engine.config import LoopConfig, OptimConfig
from voxscale.engine.optim import moment_names
from voxscale.engine.pieces import Image, Piece
from voxscale.engine.state import buffer_pieces, pieces, updates
from voxscale.engine.types import Engine
from voxscale.engine.writing import Writing, told
from voxscale.errors import TrainingError
from voxscale.files import remove_tree

log = logging.getLogger("voxscale")

PATIENCE_S = 60.0
"""How long rank 0 waits, after its own file, for other ranks' files when training has already failed."""


class Saver:
    """Saves one run's checkpoints; every rank makes one and calls its methods at the same steps.

    Args:
        run: Run folder; checkpoints land in `run/checkpoints`.
        engine: The engine to save.
        optim: Tells which moments there are.
        loop: Which checkpoints are kept.
        about: Plain values that make the weights usable: model config, input contract, stage config.
        start: Where the run goes on; checkpoints of later steps were passed over and are left alone.

    Attributes:
        waited: Seconds that training has waited for this object so far.
    """

    def __init__(
        self,
        run: Path,
        engine: Engine,
        optim: OptimConfig,
        loop: LoopConfig,
        about: dict[str, Any],
        start: Position,
    ) -> None:
        self._run, self._engine, self._optim, self._loop, self._about = run, engine, optim, loop, about
        if dist.rank() == 0:
            for left in (run / "checkpoints").glob(".step-*.tmp"):  # never became a checkpoint, and its writer is gone
                shutil.rmtree(left, ignore_errors=True)
        # Only now may other ranks begin a save, which makes such a folder.
        self._token = dist.from_rank_0(secrets.token_hex(4))
        self._count = 0
        self._image = Image()
        self._sets: list[Callable[[], Iterable[Piece]]] = []
        self._writing: Writing | None = None
        self._problem = ""
        self._passed = {path.name for path in steps(run) if step_of(path) > start.step}
        self.waited = 0.0

    def gone_back(self, to: int) -> None:
        """Leave alone the checkpoints that were damaged when the run went back to an older one; no save is under way.

        Args:
            to: Step of the checkpoint that it went back to.
        """
        later = [path for path in steps(self._run) if step_of(path) > to]
        self._passed |= {path.name for path in later if not suspected(path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread; after an error this writes what is being written, without asking the other ranks."""
        if self._writing is not None:
            self._image.hurry()
            self._writing.give_up_in(PATIENCE_S)
            self._writing.join()
        self._image.close()

    def add(self, source: Callable[[], Iterable[Piece]]) -> None:
        """Save more than weights and moments, such as a teacher.

        Args:
            source: Called at each save for this rank's slices; all ranks' slices of a tensor must cover it once.
        """
        self._sets.append(source)

    def save(self, position: Position) -> None:
        """Take a snapshot and have it written; returns as soon as training may change the weights again.

        A save that failed is not an error here: it was warned about, and this is the next attempt.
        """
        began = time.monotonic()
        self.settle()
        rng = torch.get_rng_state()
        own = [Piece("rng", f"rank{dist.rank()}", tuple(rng.shape), 0, rng)]
        if torch.cuda.is_available():  # dropout and drop path draw from the device's own generator
            drawn = torch.cuda.get_rng_state()
            own.append(Piece("rng", f"cuda{dist.rank()}", tuple(drawn.shape), 0, drawn))
        own += pieces(self._engine, moment_names(self._optim))
        own += buffer_pieces(self._engine)
        own += [piece for source in self._sets for piece in source()]
        self._image.fill(own)
        self._count += 1
        says = {"schema": SCHEMA, "position": asdict(position), "updates": updates(self._engine)}
        says |= {"world_size": dist.world_size(), "zero_stage": self._engine.zero_optimization_stage()}
        target = folder_of(self._run, position.step)
        beside = target.with_name(f".{target.name}.{self._token}-{self._count}.tmp")
        ready = None
        if torch.cuda.is_available():
            ready = torch.cuda.Event()
            ready.record()
        self._writing = Writing(self._image, ready, beside, target, says | self._about, self._prune)
        self._writing.start()
        self.waited += time.monotonic() - began

    def finish(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            TrainingError: On every rank, if it could not be written; the checkpoint before stays.
        """
        began = time.monotonic()
        self.settle()
        self.waited += time.monotonic() - began
        if self._problem:
            raise TrainingError(f"{self._problem}; then start again, the run goes on from the checkpoint before")

    def settle(self) -> None:
        """Wait for the last save and agree on how it went; a collective call, like all of training's.

        One that failed is no error: it was warned about, and the next save tries again.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        problems = [str(text) for text in dist.gather(writing.wait_for_own()) if text]
        if problems:
            writing.give_up_in(0.0)
        writing.join()
        problem = dist.from_rank_0("".join(problems[:1]) or writing.problem)
        if dist.rank() == 0 and problem:
            writing.warn(problem)
            shutil.rmtree(writing.beside, ignore_errors=True)  # all have stopped writing into it
        if dist.rank() == 0 and self._problem and not problem:
            log.info("checkpoint at step %d is on disk; saving works again", step_of(writing.target))
        self._problem = (
            problem and f"checkpoint at step {step_of(writing.target)} must be written whole, but: {problem}"
        )

    def _prune(self, newest: Path) -> None:
        """Delete what is neither new nor to be kept for good; passed-over ones are not counted or touched."""
        self._passed.discard(newest.name)
        mine = [path for path in steps(self._run) if path.name not in self._passed]
        try:
            for old in superseded(mine, self._loop.keep, self._loop.keep_every):
                gone = old.with_name(f".{old.name}.{self._token}-old.tmp")  # no part of it ever has a checkpoint's name
                old.rename(gone)
                remove_tree(gone)
        except OSError as error:
            log.warning("older checkpoints could not be removed and take room: %s", told(error))
