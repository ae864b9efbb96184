"""Progress of a stage: a bar on a terminal, plain lines with rate and remaining time elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

LINE_EVERY_S = 10.0
"""Seconds between two plain lines."""


class Progress:
    """Counts finished units of one stage and shows rate and remaining time.

    A process started by the launcher writes to a log file that the launcher
    copies to the user's terminal; `VOXSCALE_TTY=1` then asks for the bar.

    Attributes:
        stage: Name shown in front.
        total: Units to do.
        unit: Plural name of a unit.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0, show: bool = True) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._done = self._start_at = done
        self._note = ""
        self._began = self._last = time.monotonic()
        self._show = show
        tty = sys.stderr.isatty() or os.environ.get("VOXSCALE_TTY") == "1"
        self._bar: tqdm[NoReturn] | None = None
        if show and tty:
            self._bar = tqdm(
                total=total, initial=done, desc=f"{stage:<12}", unit=f" {unit}", file=sys.stderr, ncols=100
            )

    def __enter__(self) -> Self:
        """Start counting."""
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note` (such as a loss) is shown behind the rate."""
        self._done += n
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif self._show and (time.monotonic() - self._last > LINE_EVERY_S) and self._done < self.total:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._began
        rate = (self._done - self._start_at) / max(seconds, 1e-9)
        left = (self.total - self._done) / rate if rate > 0 else float("inf")
        tail = f", {self._note}" if self._note else ""
        ends = f"{left:.0f} s left" if self._done < self.total else f"done in {seconds:.1f} s"
        print(
            f"{self.stage}: {self._done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s, {ends}{tail}",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, or print the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._show and kind is None:
            self._line()
