"""A window of steps under torch's profiler."""

import logging
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from voxscale import dist
from voxscale.engine.config import ProfileConfig

log = logging.getLogger("voxscale")


class Profiler:
    """Records a few steps of this rank into `run/profile/trace-rank<r>.json` (for Perfetto or chrome://tracing).

    Args:
        run: Run folder.
        config: Which steps.
    """

    def __init__(self, run: Path, config: ProfileConfig) -> None:
        self._file = run / "profile" / f"trace-rank{dist.rank()}.json"
        self._config = config
        self._now: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def begin(self, step: int) -> None:
        """Start at the first step of the window (or at the first one in it that this start of the run does)."""
        first, last = self._config.start, self._config.start + self._config.steps
        if self._now is not None and step >= last:
            self._end()
        elif self._now is None and first <= step < last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._now = profile(activities=activities, record_shapes=True)
            self._now.start()

    def _end(self) -> None:
        if self._now is not None:
            done, self._now = self._now, None
            done.stop()
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                done.export_chrome_trace(str(self._file))
            except (OSError, RuntimeError) as error:  # a trace is no reason to end a run
                log.warning(
                    "profile could not be written: %s", getattr(error, "strerror", None) or type(error).__name__
                )
                return
            log.info("profile of %d steps from step %d is written", self._config.steps, self._config.start)
