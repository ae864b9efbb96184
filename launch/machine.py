"""The machine a run was measured on, and how much memory it took."""

import contextlib
import json
import os
import platform
import subprocess
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from voxscale.files import write_json

SAMPLE_S = 0.5
KEEP_EVERY = 4


class StageWatch:
    """Measures one stage: seconds, and the resident memory of this process and all its descendants together.

    What is known is kept in a file while the stage runs, so that an attempt
    that was killed is counted when the next one ends. Pages that processes
    share count once per process.
    """

    def __init__(self, running: Path) -> None:
        self._path = running
        before = json.loads(running.read_text()) if running.is_file() else {"seconds": 0.0, "peak_gb": 0.0}
        self._seconds, self._peak_gb = float(before["seconds"]), float(before["peak_gb"])
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def known(self) -> dict[str, float]:
        """Seconds and peak memory in GB (10^9 bytes) so far, earlier attempts included."""
        return {"seconds": self._seconds + time.monotonic() - self._began, "peak_gb": self._peak_gb}

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        number = 0
        while not self._stop.wait(SAMPLE_S):
            now = sum(_resident(p) for p in [me, *me.children(recursive=True)]) / 1e9
            self._peak_gb = max(self._peak_gb, now)
            number += 1
            if number % KEEP_EVERY == 0:
                with contextlib.suppress(OSError):  # a full disk is the stage's own trouble, and it will say so
                    write_json(self._path, self.known())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling; a stage that failed is remembered too."""
        self._stop.set()
        self._thread.join()
        if kind is not None:
            with contextlib.suppress(OSError):
                write_json(self._path, self.known())


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def describe() -> dict[str, str | int | float]:
    """Processor, cores, memory, versions and commit; no host name and no user."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
        "commit": commit(),
    } | gpu()


def gpu() -> dict[str, str]:
    """Name of the first GPU, if there is one."""
    import torch

    return {"gpu": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def commit() -> str:
    """Commit of this checkout, with a mark if files differ from it."""
    root = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
