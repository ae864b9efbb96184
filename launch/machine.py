"""The machine a run was measured on, and how much memory it took."""

import os
import platform
import subprocess
import threading
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

SAMPLE_S = 0.5


class MemoryWatch:
    """Samples the resident memory of this process and all its descendants together.

    Attributes:
        peak_gb: Largest sum seen, in GB (10^9 bytes); pages that processes share count once per process.
    """

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(SAMPLE_S):
            self.peak_gb = max(self.peak_gb, sum(_resident(p) for p in [me, *me.children(recursive=True)]) / 1e9)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()


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
    }


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
