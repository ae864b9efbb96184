"""What a run costs: losses averaged over steps and ranks, samples and operations per second, waiting, memory."""

import math
import re
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from voxscale import dist
from voxscale.engine.config import Precision
from voxscale.engine.types import Engine
from voxscale.stopwatch import SOLVER

# Second-hand: no data sheet was read for this table. [C] GPU_AVAILABLE_FLOPS of mosaicml/composer,
# composer/callbacks/speed_monitor.py at 003ec03; [L] _CUDA_FLOPS of Lightning-AI/pytorch-lightning,
# src/lightning/fabric/utilities/throughput.py at 0810121; [T] get_peak_flops of pytorch/torchtitan,
# torchtitan/tools/utils.py at 0258167. Each names the data sheet it took its figure from.
PEAK_TFLOPS: dict[str, dict[Precision, float]] = {
    "V100 SXM2": {"fp32": 15.7},  # C, L
    "V100 SXM3": {"fp32": 15.7},  # C, L: they name the module without its number
    "V100 PCIE": {"fp32": 14.0},  # C, L
    "V100S PCIE": {"fp32": 16.4},  # C, L
    "A100": {"bf16": 312.0, "fp32": 19.5},  # C, L, T: SXM and PCIe alike
    "H100 PCIe": {"bf16": 1513 / 2, "fp32": 51.0},  # C, L, T
    "H100 NVL": {"bf16": 835.0},  # T
    "H100": {"bf16": 1979 / 2, "fp32": 67.0},  # C, L, T: SXM
    "H200": {"bf16": 1979 / 2, "fp32": 67.0},  # C, T: SXM
    "H200 NVL": {},  # known to differ, no source
}
"""Dense peak of one GPU in TFLOP/s by words of its name, second-hand: as three libraries cite NVIDIA's data sheets.

Halves are of what a sheet states with sparsity; fp32 is without TF32. For every other GPU there is no figure here, and
so no MFU, unless `loop.peak_tflops` gives one: of the A40 and the L40S no source was found, and of the B200 only ones
that contradict each other (2250 and 2500).
"""

BACKWARD = 3
"""A training step takes three forward passes' operations; what is recomputed to save memory does not count."""


def peak_tflops(device: str, precision: Precision) -> float:
    """Dense peak of a device in TFLOP/s, second-hand (see `PEAK_TFLOPS`); 0 if it is not known.

    Args:
        device: Its name, as of `torch.cuda.get_device_name`.
        precision: Of the weights.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", device))  # a GH200 is not an H200
    found = [name for name in PEAK_TFLOPS if words.issuperset(name.split())]
    return PEAK_TFLOPS[max(found, key=len)].get(precision, 0.0) if found else 0.0


def own_peak(engine: Engine) -> float:
    """Dense peak of the engine's GPU at the precision of its weights, in TFLOP/s; 0 on a CPU."""
    if engine.device.type != "cuda":
        return 0.0
    precision = "bf16" if next(engine.module.parameters()).dtype == torch.bfloat16 else "fp32"
    return peak_tflops(torch.cuda.get_device_name(engine.device), precision)


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Sums up between two lines of metrics.

    Args:
        flops: Floating-point operations of one sample's training step; 0 if they are not known.
        peak: What one device can do, in TFLOP/s; 0 if it is not known.

    Attributes:
        waited: Seconds spent waiting for data since the last line.
        saved: Seconds spent on checkpoints since the last line.
        probed: Seconds spent on looking at the network since the last line.
    """

    def __init__(self, flops: float = 0.0, peak: float = 0.0) -> None:
        self._flops, self._peak = flops, peak
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0
        self._samples = self._voxels = 0
        self._since = self._began = time.monotonic()
        self.waited = self.saved = self.probed = 0.0
        SOLVER.take()  # what was solved before the run

    def add(self, losses: Mapping[str, Tensor], samples: int, voxels: int) -> None:
        """Count one micro-batch of this rank; the losses stay on their device until the next line."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
        self._count += 1
        self._samples += samples
        self._voxels += voxels

    def line(self, step: int, lr: float, grad_norm: float) -> dict[str, Any]:
        """Average over ranks and steps, and start anew; every rank must call.

        If all steps since the last line were skipped, there are no losses in it.
        """
        names = sorted(self._sums)  # the same on all ranks, as steps are skipped by all or none
        seconds = max(time.monotonic() - self._since, 1e-9)
        local = [float(self._sums[n]) for n in names]
        local += [self._count, self._samples, self._voxels, self.waited, self.saved, self.probed]
        local += [SOLVER.take(), peak_rss_gb()]
        *sums, count, samples, voxels, waited, saved, probed, solved, rss = dist.total([float(v) for v in local])
        row: dict[str, Any] = {"step": step}
        row |= {name: value / count for name, value in zip(names, sums, strict=True)}
        shared = seconds * dist.world_size()
        row |= {
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,  # of a skipped step it may be anything
            "samples_per_s": samples / seconds,
            "voxels_per_s": voxels / seconds,
            "data_wait": waited / shared,
            "save_wait": saved / shared,
            "compute": 1 - (waited + saved + probed) / shared,
            "seconds": time.monotonic() - self._began,
            "rss_gb": rss,
        }
        if probed:
            row["probe_wait"] = probed / shared
        if solved:
            row["solver_share"] = solved / shared
        if self._flops:
            row["tflops"] = self._flops * samples / shared / 1e12
            if self._peak:
                row["mfu"] = row["tflops"] / self._peak
        if torch.cuda.is_available():
            row["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._sums, self._count, self._samples, self._voxels = {}, 0, 0, 0
        self.waited = self.saved = self.probed = 0.0
        self._since = time.monotonic()
        return row
