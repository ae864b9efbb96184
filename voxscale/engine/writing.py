"""One save of one rank on its way to the disk; on rank 0 also what makes it a checkpoint (`voxscale.engine.saver`)."""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from voxscale import dist
from voxscale.engine.checkpoint import manifest_text, step_of, verify
from voxscale.engine.pieces import Image
from voxscale.errors import CheckpointError, remedy
from voxscale.files import remove_tree, sha256_file, sync, write_text

log = logging.getLogger("voxscale")

POLL_S = 0.2
"""Longest pause between two looks for other ranks' files: each costs training some time."""


class Writing(threading.Thread):
    """One save of one rank, from the snapshot to the disk.

    Attributes:
        problem: What went wrong, or empty, once the thread has ended; of rank 0 also what other ranks told it.
    """

    def __init__(
        self,
        image: Image,
        ready: torch.cuda.Event | None,
        beside: Path,
        target: Path,
        state: dict[str, Any],
        prune: Callable[[Path], None],
    ) -> None:
        super().__init__(name=f"write {target.name}", daemon=True)
        self._image, self._ready, self._state, self._prune = image, ready, state, prune
        self.beside, self.target = beside, target
        self._written = threading.Event()
        self._until = float("inf")
        self.problem = self._own_problem = ""
        self._warned = self._all_ended = False

    def wait_for_own(self) -> str:
        """Wait for this rank's own file, which nothing holds up now; returns what went wrong."""
        self._image.hurry()
        self._written.wait()
        return self._own_problem

    def give_up_in(self, seconds: float) -> None:
        """Have rank 0 wait no longer than this for other ranks' files."""
        self._until = time.monotonic() + seconds

    def run(self) -> None:
        """Write this rank's file and, on rank 0, publish the checkpoint; every failure ends in `problem`."""
        try:
            self._write_own()
        except Exception as error:  # whatever it is, training goes on and the next save tries again
            self.problem = self._own_problem = told(error)
            self._give_room()
        finally:
            self._written.set()
        if dist.rank() == 0:
            self._end()

    def _end(self) -> None:
        """Publish the checkpoint, or remove what there is of it once nobody writes into it any more."""
        if self.problem:
            self.warn(self.problem)
        try:
            files = self._collect()
            if not self.problem:
                self._publish(files)
        except Exception as error:
            self.problem = self.problem or told(error)
            if time.monotonic() < self._until:  # else another rank's trouble, which is told later
                self.warn(self.problem)
        if self.problem and self._all_ended:
            shutil.rmtree(self.beside, ignore_errors=True)

    def warn(self, problem: str) -> None:
        """Say once that this save failed."""
        if not self._warned:
            self._warned = True
            log.warning(
                "checkpoint at step %d could not be written: %s; training goes on, older checkpoints stay, "
                "the next save tries again",
                step_of(self.target),
                problem,
            )

    def _own_file(self) -> str:
        """Of this rank's file."""
        return f"state-{dist.rank():05d}-of-{dist.world_size():05d}.safetensors"

    def _write_own(self) -> None:
        self.beside.mkdir(parents=True, exist_ok=True)
        if self._ready is not None:
            self._ready.synchronize()
        name = self._own_file()
        note = {"name": name, **self._image.write(self.beside / name)}
        sync(self.beside)
        half = self.beside / f"{name}.note"
        half.write_text(json.dumps(note))
        half.rename(self.beside / f"{name}.done")

    def _give_room(self) -> None:
        """Take this rank's part away, and tell rank 0; where not even that works, it hears of it at the next save."""
        name = self._own_file()
        half = self.beside / f"{name}.why"
        with contextlib.suppress(OSError):
            (self.beside / name).unlink(missing_ok=True)
            half.touch()
            with contextlib.suppress(OSError):  # on a full disk there may be room for a name only
                half.write_text(self._own_problem)
            half.rename(self.beside / f"{name}.failed")

    def _collect(self) -> dict[str, dict[str, Any]]:
        """Wait for every rank's note; returns size and hash of every file.

        Raises:
            CheckpointError: If a rank failed, is too late, or its file is not as it wrote it.
        """
        pause = 0.01
        while True:
            notes, bad = (sorted(self.beside.glob(f"state-*.{end}")) for end in ("done", "failed"))
            if len(notes) + len(bad) >= dist.world_size():
                break
            if time.monotonic() > self._until:
                raise CheckpointError(f"only {len(notes)} of {dist.world_size()} ranks wrote their part")
            time.sleep(pause)
            pause = min(2 * pause, POLL_S)
        self._all_ended = True
        if bad:
            raise CheckpointError(bad[0].read_text() or f"{bad[0].stem} could not be written")
        files = {note.pop("name"): note for note in (json.loads(path.read_text()) for path in notes)}
        for name, known in files.items():
            if (self.beside / name).stat().st_size != known["bytes"]:
                raise CheckpointError(f"{name} has another size than its rank wrote")
        for path in notes:
            path.unlink()
        return files

    def _publish(self, files: dict[str, dict[str, Any]]) -> None:
        """Write the manifest last, rename the folder, forget what is not to be kept."""
        state = self.beside / "state.json"
        write_text(state, json.dumps(self._state, indent=1) + "\n")
        files[state.name] = {"bytes": state.stat().st_size, "sha256": sha256_file(state)}
        write_text(self.beside / "manifest.json", manifest_text(files))
        if is_there(self.target):
            remove_tree(self.beside)
        else:
            os.rename(self.beside, self.target)
        sync(self.target.parent)
        self._prune(self.target)


def told(error: Exception) -> str:
    """What went wrong and what helps."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; {remedy(error)}"
    return f"{error}" if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"


def is_there(target: Path) -> bool:
    """Whether a step was saved before, whole: that one stays, as for a moment there would be none while it is replaced.

    So it is where a start could not read it and began at an older one; from there the run came to the same state.
    A damaged one makes room: it is renamed, never deleted.
    """
    if not target.exists():
        return False
    try:
        verify(target)
    except CheckpointError:
        number = len(list(target.parent.glob(f"damaged-{target.name}-*"))) + 1
        target.rename(target.with_name(f"damaged-{target.name}-{number}"))
        return False
    return True
