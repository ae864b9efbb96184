"""What a run costs: losses averaged over steps and ranks, samples and operations per second, waiting, memory.

All ranks wait for the slowest, and the fullest runs out of memory first, so of
what may differ between ranks the largest value is told too, and whose it is.
"""

import math
import re
import resource
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from voxscale import dist
from voxscale.engine.config import Precision
from voxscale.engine.types import Engine
from voxscale.stopwatch import SOLVER, WAITING

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
        passed: Seconds spent in forward passes since the last line, those on a GPU left out until it is made.
    """

    def __init__(self, flops: float = 0.0, peak: float = 0.0) -> None:
        self._flops, self._peak = flops, peak
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0
        self._samples = self._voxels = 0
        self._since = self._began = time.monotonic()
        self.waited = self.saved = self.probed = self.passed = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        SOLVER.take()  # what was solved before the run
        WAITING.take()

    @contextmanager
    def forward(self, device: torch.device) -> Generator[None]:
        """Time a forward pass: the only part of a step in which no rank waits for another (but at ZeRO stage 3).

        Where a loss is that of all ranks' samples, what it waits for the others is left out.
        A GPU's own clock times it there, which holds nothing up. Read the loss before the next line is made.

        Args:
            device: Where the pass runs.
        """
        if device.type == "cuda":
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            yield
            pair[1].record()
            self._events.append(pair)
        else:
            began = time.monotonic()
            yield
            self.passed += time.monotonic() - began

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
        local += [self._count, self._samples, self._voxels, self.probed, SOLVER.take()]
        own = self._own(seconds)
        ranks = dist.from_all([float(v) for v in (*local, *own.values())])
        *sums, count, samples, voxels, probed, solved = map(sum, list(zip(*ranks, strict=True))[: len(local)])
        each = {name: [values[len(local) + n] for values in ranks] for n, name in enumerate(own)}
        row: dict[str, Any] = {"step": step}
        row |= {name: value / count for name, value in zip(names, sums, strict=True)}
        shared = seconds * dist.world_size()
        row |= {
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,  # of a skipped step it may be anything
            "samples_per_s": samples / seconds,
            "voxels_per_s": voxels / seconds,
            "seconds": time.monotonic() - self._began,
        }
        row |= over_ranks(each)
        row["compute"] = 1 - row["data_wait"] - row["save_wait"] - probed / shared
        if probed:
            row["probe_wait"] = probed / shared
        if solved:
            row["solver_share"] = solved / shared
        if self._flops:
            row["tflops"] = self._flops * samples / shared / 1e12
            if self._peak:
                row["mfu"] = row["tflops"] / self._peak
        self._sums, self._count, self._samples, self._voxels = {}, 0, 0, 0
        self.waited = self.saved = self.probed = self.passed = 0.0
        self._since = time.monotonic()
        return row

    def _own(self, seconds: float) -> dict[str, float]:
        """This rank's figures that may be another rank's very different ones: shares of the time, and GB."""
        events, self._events = self._events, []
        self.passed += sum(begin.elapsed_time(end) for begin, end in events) / 1000
        self.passed = max(self.passed - WAITING.take(), 0.0)
        own = {
            "data_wait": self.waited / seconds,
            "save_wait": self.saved / seconds,
            "forward_share": self.passed / seconds,
            "rss_gb": peak_rss_gb(),
        }
        if torch.cuda.is_available():
            own["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return own


def over_ranks(each: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Figures of all ranks in one line: the mean of shares, the sum of host memory, the largest of GPU memory.

    Of several ranks also the largest, `<name>_max`, and whose it is, `<name>_rank`; of GPU memory the rank alone.

    Args:
        each: Values by name, in rank order.
    """
    row: dict[str, float] = {}
    for name, values in each.items():
        most = max(values)
        if name == "gpu_gb":  # every GPU has a limit of its own
            row[name] = most
        else:
            row[name] = sum(values) / (1 if name == "rss_gb" else len(values))
        if len(values) > 1:
            row |= {} if name == "gpu_gb" else {f"{name}_max": most}
            row[f"{name}_rank"] = values.index(most)
    return row
