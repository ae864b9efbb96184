"""Submit a stage: local processes and Slurm jobs through the same submitit interface."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError

from launch.cluster import Cluster
from launch.job import Stage, StageJob
from voxscale import parent
from voxscale.errors import PreemptedError, TrainingError
from voxscale.signals import StopRequest, listening, name_of

log = logging.getLogger("voxscale")

POLL_S = 0.2
PASS_S = 5.0
"""Seconds after which a signal is passed on again: a process that only just starts drops it."""


def run_stage(stage: Stage, config: Any, cluster: Cluster, logs: Path) -> None:
    """Run a stage to its end, showing what rank 0 prints; a Slurm job is only submitted unless asked to wait.

    A signal that asks this process to end is passed on to local ranks, which save, and their end is waited for.

    Args:
        stage: Which stage.
        config: The stage's config.
        cluster: Where and how large.
        logs: Folder for submitit's files and every rank's output.

    Raises:
        PreemptedError: If a signal ended local ranks.
        TrainingError: If the job fails; with the stage's own message where it had one.
    """
    local = cluster.cluster == "local"
    executor = executor_of(cluster, logs)
    job = executor.submit(
        StageJob(
            stage=stage,
            config=config,
            threads=cluster.threads,
            port=_free_port() if local else 0,
            parent=parent.current() if local else "",
            tty=sys.stderr.isatty(),
        )
    )
    if not local and not cluster.wait:
        log.info("%s: submitted as job %s; its output goes to the logs folder of the run", stage, job.job_id)
        return
    if local:
        follow_local(stage, job)
        return
    try:
        follow(job)
    except BaseException:
        job.cancel()
        raise
    check(stage, job)


def follow_local(stage: Stage, job: submitit.Job[Any]) -> None:
    """The same for ranks of this machine, which no scheduler speaks to."""
    with listening() as request:
        try:
            follow(job, _passing_on(job, request))
        except BaseException:
            job.cancel()
            raise
        try:
            check(stage, job)
        except TrainingError as error:
            if not request.number or _failed(job):
                raise
            raise PreemptedError(str(error), name_of(request.number)) from None


def _failed(job: submitit.Job[Any]) -> bool:
    """Whether a rank met an error that no signal brings about, and that it would meet again."""
    for task in range(job.num_tasks):
        with suppress(UncompletedJobError):
            if job.task(task).result().get("kind", "Exception") not in ("Exception", "PreemptedError"):
                return True
    return False


def _passing_on(job: submitit.Job[Any], request: StopRequest) -> Callable[[], None]:
    """What sends a signal that came to the process of a local job, which sends it to each rank."""
    due = 0.0

    def pass_on() -> None:
        nonlocal due
        if request.number and time.monotonic() >= due:
            due = time.monotonic() + PASS_S
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)

    return pass_on


def executor_of(cluster: Cluster, logs: Path, timeouts: int = 3) -> submitit.Executor:
    """What jobs are submitted to.

    Args:
        cluster: Where and how large.
        logs: Folder for submitit's files; a Slurm job gets one of its own in it.
        timeouts: How often a Slurm job that ran out of its time is queued again.
    """
    local = cluster.cluster == "local"
    limit = {} if local else {"slurm_max_num_timeout": timeouts}
    executor = submitit.AutoExecutor(folder=logs if local else logs / "%j", cluster=cluster.cluster, **limit)
    executor.update_parameters(
        timeout_min=int(cluster.hours * 60) or 1,
        nodes=cluster.nodes,
        tasks_per_node=cluster.processes,
        gpus_per_node=cluster.gpus,
    )
    if cluster.cluster == "slurm":
        wanted = {"slurm_partition": cluster.partition, "slurm_account": cluster.account, "mem_gb": cluster.memory_gb}
        executor.update_parameters(
            cpus_per_task=cluster.threads,
            slurm_signal_delay_s=120,
            **{name: value for name, value in wanted.items() if value},
        )
    return executor


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def follow(job: submitit.Job[Any], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Copy what rank 0 writes to standard error until the job has ended; `meanwhile` is called again and again."""
    position = 0
    while True:
        meanwhile()
        over = job.done(force_check=True) if job.job_id else True
        text, position = shown(job.task(0), position)
        sys.stderr.write(text)
        sys.stderr.flush()
        if over:
            return
        time.sleep(POLL_S)


def shown(job: submitit.Job[Any], position: int) -> tuple[str, int]:
    """What a job wrote to standard error since a position in it, without submitit's own lines; and how far that is."""
    path = job.paths.stderr
    if not path.exists():
        return "", position
    with path.open("rb") as handle:
        handle.seek(position)
        text = handle.read()
    lines = text.decode(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("submitit ")), position + len(text)


def check(stage: str, job: submitit.Job[Any]) -> None:
    """Raise the first error among the ranks; a message of the stage's own says it best."""
    problems: list[str] = []
    for task in range(job.num_tasks):
        try:
            answer = job.task(task).result()
        except UncompletedJobError:
            problems.append(f"rank {task} ended without an answer (killed, or out of memory)")
        else:
            if answer.get("kind", "Exception") != "Exception":
                raise TrainingError(str(answer["error"]))
            problems += [f"rank {task}: {answer['error']}"] if "error" in answer else []
    if problems:
        logs = os.path.relpath(job.paths.folder)
        raise TrainingError(f"{stage} must end well on every rank, but {'; '.join(problems)}; see {logs}")
