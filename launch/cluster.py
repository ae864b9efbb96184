"""Where a stage runs."""

import os
from typing import Literal

from voxscale.config import config, require


@config
class Cluster:
    """Machines and limits of one job.

    Attributes:
        cluster: `local` for processes on this machine, `slurm` for a Slurm cluster.
        nodes: Machines.
        processes: Processes per machine: one per GPU, or a few on CPUs.
        gpus: GPUs per machine.
        cpus: CPU cores per process; 0 shares this machine's cores evenly (local only).
        hours: Time limit.
        memory_gb: Memory per machine, in GB; 0 leaves it to the cluster.
        partition: Slurm partition.
        account: Slurm account.
        wait: Whether to follow a Slurm job to its end; a local one always is.
    """

    cluster: Literal["local", "slurm"] = "local"
    nodes: int = 1
    processes: int = 1
    gpus: int = 0
    cpus: int = 0
    hours: float = 24.0
    memory_gb: int = 0
    partition: str = ""
    account: str = ""
    wait: bool = False

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        for name in ("nodes", "processes"):
            require(getattr(self, name) >= 1, f"cluster.{name}", "at least 1", getattr(self, name))
        for name in ("gpus", "cpus", "memory_gb"):
            require(getattr(self, name) >= 0, f"cluster.{name}", "at least 0", getattr(self, name))
        require(self.hours > 0, "cluster.hours", "above 0", self.hours)
        require(self.cluster == "slurm" or self.nodes == 1, "cluster.nodes", "1 with cluster local", self.nodes)

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return self.cpus or max(1, len(os.sched_getaffinity(0)) // self.processes)
