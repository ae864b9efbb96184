"""Metrics: `metrics.jsonl` is the truth, W&B a mirror that can never stop a run; neither can a full disk."""

import json
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxscale.engine.config import TrackerConfig
from voxscale.errors import remedy
from voxscale.files import append_line, read_lines, write_text

log = logging.getLogger("voxscale")

QUEUE_LINES = 1000
HELD_LINES = 4096
"""Lines that are held at most while the disk takes none; beyond, every second one of the older half is left out."""
CLOSE_SECONDS = 60.0


class Tracker:
    """Writes one run's metrics, on rank 0.

    W&B runs on a thread of its own behind a bounded queue: if it is slow,
    lines are dropped and counted; if it fails, it is switched off and said so.
    It is told nothing of the machine, the code, or any path.
    """

    def __init__(
        self,
        run: Path,
        config: TrackerConfig,
        about: dict[str, Any],
        step: int,
        hear: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._hear = hear  # told of every line
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / "metrics.jsonl"
        self._forget_after(step)
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE_LINES)
        self._dropped = 0
        self._held: list[dict[str, Any]] = []
        self._thinned = 0
        self._thread: threading.Thread | None = None
        if config.wandb:
            self._thread = threading.Thread(target=self._mirror, args=(run, config, about), daemon=True)
            self._thread.start()

    def _forget_after(self, step: int) -> None:
        """Drop the lines of steps that a crash undid, so that each step stands once; at the start they all are."""
        rows = read_lines(self._path)
        kept = [row for row in rows if step > 0 and row["step"] <= step]
        if len(kept) != len(rows):
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))  # whole, or the old one stays

    def log(self, row: dict[str, Any]) -> None:
        """Write one line; it must hold `step`. What the disk does not take is held and tried again with the next.

        At most `HELD_LINES` are held, then the oldest thin out and are counted.
        """
        self._held.append(row)
        self._write(told=len(self._held) > 1)
        if len(self._held) > HELD_LINES:
            before = len(self._held)
            del self._held[1 : HELD_LINES // 2 : 2]  # again and again: the older, the sparser
            self._thinned += before - len(self._held)
        self._hear(row)
        if self._thread is not None:
            try:
                self._lines.put_nowait(row)
            except queue.Full:
                self._dropped += 1

    def _write(self, told: bool) -> None:
        """Write all lines that are held, in their order.

        Args:
            told: Whether the log says already that they cannot be written.
        """
        try:
            while self._held:
                append_line(self._path, self._held[0])
                del self._held[0]
        except OSError as error:
            if not told:
                log.warning(
                    "metrics could not be written: %s; %s; training goes on, the lines are kept until they can be",
                    error.strerror or type(error).__name__,
                    remedy(error),
                )
            return
        if self._thinned:
            text = "metrics are written again; %d lines of the time between are missing, as at most %d are held"
            log.warning(text, self._thinned, HELD_LINES)
            self._thinned = 0
        elif told:
            log.info("metrics are written again, none is missing")

    def close(self) -> None:
        """Write what is held, and end the mirror, waiting a bounded time."""
        if self._held:
            self._write(told=True)
        if self._held:
            lost = len(self._held) + self._thinned
            log.warning("the last %d lines of metrics could not be written", lost)
        if self._thread is not None:
            try:
                self._lines.put(None, timeout=1.0)
            except queue.Full:
                self._dropped += 1
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive() or self._dropped:
                log.warning("W&B did not keep up: %d lines dropped, of W&B alone", self._dropped)

    def _mirror(self, run: Path, config: TrackerConfig, about: dict[str, Any]) -> None:
        try:
            import wandb

            online = bool(os.environ.get("WANDB_API_KEY"))
            settings = wandb.Settings(
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                disable_git=True,
                disable_code=True,
                console="off",
                silent=True,
                init_timeout=90,
                mode="online" if online else "offline",
            )
            mirror = wandb.init(project=config.project, dir=str(run), config=about, settings=settings)
            mirror.define_metric("*", step_metric="step")
            while (row := self._lines.get()) is not None:
                mirror.log(row)
            mirror.finish()
        except Exception as error:  # whatever W&B raises, the run must go on
            log.warning("W&B is off for this run (%s); metrics.jsonl goes on", type(error).__name__)
