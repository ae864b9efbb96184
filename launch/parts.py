"""Preparing data with many workers: a job array of parts, then the run that gathers what they did."""

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import submitit

from launch.cluster import Cluster
from launch.submit import POLL_S, check, executor_of, follow, shown
from voxscale import parent
from voxscale.config import require

log = logging.getLogger("voxscale")

Work = Literal["ingest", "pack"]
TIMEOUTS = 1000
"""How often a Slurm job may be queued again: submitit takes a preemption of a short job for a time-out."""


@dataclass(frozen=True)
class WorkJob:
    """One command of data preparation; submitit calls it in the process of the job.

    All of it is idempotent, so a job that was killed or preempted is simply run again.

    Attributes:
        work: Module of `data_prep`.
        arguments: Its command line.
        parent: Launcher that a local job must not outlive, see `voxscale.parent`; empty for none.
        tty: Whether it draws a progress bar for a terminal.
    """

    work: Work
    arguments: tuple[str, ...]
    parent: str
    tty: bool

    def __call__(self, part: str = "") -> dict[str, Any]:
        """Run the command, or one part K/N of it; returns an `error` that the user can mend instead of raising it."""
        from voxscale.errors import VoxScaleError, system_error_text
        from voxscale.log import setup

        os.environ |= {"VOXSCALE_TTY": "1" if self.tty else "0"}
        parent.end_with(self.parent)
        # submitit would ignore it, and go on while the scheduler ends the readers; nothing is lost by ending at once.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        setup()
        arguments = [*self.arguments, *(["--part", part] if part else [])]
        try:
            status = int(importlib.import_module(f"data_prep.{self.work}").main(arguments))
        except VoxScaleError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            return {"error": system_error_text(error), "kind": "OSError"}
        except Exception as error:  # a defect: the trace goes to this job's log, one line to the launcher
            logging.getLogger("voxscale").exception("%s failed", self.work)
            return {"error": f"{self.work} failed with {type(error).__name__}: {error}", "kind": "Exception"}
        if status:
            return {"error": f"{self.work} accepted nothing (status {status}); see the ledger", "kind": "DataError"}
        return {}

    def checkpoint(self, part: str = "") -> submitit.helpers.DelayedSubmission:
        """Called by submitit before preemption or time-out: queue the same job again; it goes on where it was."""
        return submitit.helpers.DelayedSubmission(self, part)


def run_parts(work: Work, arguments: Sequence[str], parts: int, cluster: Cluster, logs: Path) -> None:
    """Share a command among `parts` jobs, then gather; Slurm jobs are only submitted unless asked to wait.

    Whatever becomes of the parts, the gathering run does what they left undone.

    Args:
        work: Which command.
        arguments: Its command line, without `--part`.
        parts: How many jobs.
        cluster: Where and how large each of them is.
        logs: Folder for submitit's files and every job's output.

    Raises:
        TrainingError: If the gathering run fails; with its own message where it had one.
    """
    require(parts >= 1, "parts", "at least 1", parts)
    local = cluster.cluster == "local"
    # On a Slurm cluster the CPUs of a job are what the scheduler grants; here all parts share this machine.
    cpus = cluster.cpus or (max(1, len(os.sched_getaffinity(0)) // parts) if local else 1)
    executor = executor_of(replace(cluster, nodes=1, processes=1, gpus=0, cpus=cpus), logs, TIMEOUTS)
    if work == "ingest" and "--workers" not in arguments:
        arguments = [*arguments, "--workers", str(cpus)]
    watched = parent.current() if local else ""
    names = [f"{number}/{parts}" for number in range(1, parts + 1)]
    jobs = executor.map_array(WorkJob(work, tuple(arguments), watched, tty=False), names)
    if local:
        _wait(work, names, jobs)
    else:
        first = jobs[0].job_id.split("_")[0]
        executor.update_parameters(slurm_additional_parameters={"dependency": f"afterany:{first}"})
    gather = executor.submit(WorkJob(work, tuple(arguments), watched, sys.stderr.isatty() and local))
    if not local:
        log.info("%s: submitted %d parts as job %s, then job %s to gather them", work, parts, first, gather.job_id)
        if not cluster.wait:
            return
    try:
        follow(gather)
    except BaseException:
        gather.cancel()
        raise
    check(work, gather)


def _wait(work: Work, names: Sequence[str], jobs: Sequence[submitit.Job[Any]]) -> None:
    """Show what all parts write until they have ended, and say which did not end well."""
    positions = [0] * len(jobs)
    try:
        while True:
            over = all(job.done(force_check=True) for job in jobs)
            for number, job in enumerate(jobs):
                text, positions[number] = shown(job, positions[number])
                sys.stderr.write(text)
            sys.stderr.flush()
            if over:
                break
            time.sleep(POLL_S)
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    for name, job in zip(names, jobs, strict=True):
        try:
            error = job.result().get("error")
        except submitit.core.utils.UncompletedJobError:
            error = "it was killed"
        if error is not None:
            log.warning("%s: part %s did not end well (%s); what it left undone is done now", work, name, error)
