"""What trainings are run by: submitted one by one, or handed to processes that stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.cluster import Cluster
from launch.job import Stage
from launch.submit import run_stage
from launch.workers import Worker
from voxscale.config import require


class Runner(Protocol):
    """Runs one stage at a time."""

    def run(self, stage: Stage, config: Any, logs: Path) -> None:
        """Run a stage to its end; raises `TrainingError` if it fails."""
        ...

    def stop(self) -> None:
        """End whatever it is at, if it can be ended from here."""
        ...


class Submitted:
    """Submits each stage to a cluster, or to several processes of this machine."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def run(self, stage: Stage, config: Any, logs: Path) -> None:
        """Run a stage to its end; raises `TrainingError` if it fails."""
        run_stage(stage, config, self._cluster, logs)

    def stop(self) -> None:
        """A submitted stage ends by itself; nothing follows it."""


def make_runners(cluster: Cluster, jobs: int) -> Sequence[Runner]:
    """As many as there are to be trainings at a time.

    Raises:
        ConfigError: If several are wanted of what takes more than one process each.
    """
    if cluster.cluster == "local" and cluster.processes == 1:
        return [Worker(cluster.threads) for _ in range(jobs)]
    require(jobs == 1, "jobs", "1 unless a training is one process of this machine", jobs)
    return [Submitted(cluster)]
