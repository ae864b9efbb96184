"""What a run costs: losses averaged over steps and ranks, samples and voxels per second, memory."""

import resource
import time
from typing import Any

import torch

from voxscale import dist
from voxscale.batch import Losses


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Sums up between two lines of metrics.

    Attributes:
        waited: Seconds spent waiting for data since the last line.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._samples = self._voxels = 0
        self._since = self._began = time.monotonic()
        self.waited = 0.0

    def add(self, losses: Losses, samples: int, voxels: int) -> None:
        """Count one micro-batch of this rank."""
        parts = {"loss": losses.total, **losses.terms, **losses.watched}
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._count += 1
        self._samples += samples
        self._voxels += voxels

    def line(self, step: int, lr: float, grad_norm: float) -> dict[str, Any]:
        """Average over ranks and steps, and start anew; every rank must call."""
        names = sorted(self._sums)
        seconds = max(time.monotonic() - self._since, 1e-9)
        local = [self._sums[n] for n in names] + [self._count, self._samples, self._voxels, self.waited]
        *sums, count, samples, voxels, waited = dist.total([float(v) for v in local])
        row: dict[str, Any] = {"step": step}
        row |= {name: value / count for name, value in zip(names, sums, strict=True)}
        row |= {
            "lr": lr,
            "grad_norm": grad_norm,
            "samples_per_s": samples / seconds,
            "voxels_per_s": voxels / seconds,
            "data_wait": waited / (seconds * dist.world_size()),
            "seconds": time.monotonic() - self._began,
            "rss_gb": sum(dist.total([peak_rss_gb()])),
        }
        if torch.cuda.is_available():
            row["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._sums, self._count, self._samples, self._voxels, self.waited = {}, 0, 0, 0, 0.0
        self._since = time.monotonic()
        return row
