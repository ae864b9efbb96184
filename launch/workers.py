"""Processes of this machine that take one training after another, so that imports are paid for once each."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from launch.job import Stage, StageJob
from voxscale import parent
from voxscale.errors import TrainingError

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""A group of one rank, which finds a port by itself."""


class Worker:
    """One such process. It is started when it is first needed, and anew after it was killed.

    A stage that runs here gives the bits of the same stage in a process of its own: stages are functions of their
    config alone.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._context = multiprocessing.get_context("spawn")  # a fork would share what CUDA has begun
        self._process: Any = None
        self._pipe: Any = None
        self._stopped = False

    def run(self, stage: Stage, config: Any, logs: Path) -> None:
        """Run a stage to its end; what it prints goes to `logs/log.txt`.

        Raises:
            TrainingError: If it fails, with its own message, or if the process ends.
        """
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._pipe.send((stage, config, str(logs)))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise TrainingError(f"{stage} must end with an answer; its process was killed, or out of memory") from None
        if "error" in answer:
            raise TrainingError(str(answer["error"]))

    def _start(self) -> None:
        if self._stopped:
            raise TrainingError("a stage must begin before its time is over")
        self._pipe, theirs = self._context.Pipe()
        # Not a daemon, as a training has processes of its own; it ends with this one.
        process = self._context.Process(target=_serve, args=(theirs, self._threads, parent.current()))
        process.start()
        self._process = process  # only now, as one that has not been started cannot be stopped
        theirs.close()
        if self._stopped:  # meanwhile
            self.stop()

    def stop(self) -> None:
        """End the process now, whatever it is at; what is written stays, as files are renamed when they are whole."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _serve(pipe: Any, threads: int, launcher: str) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, with the first config
    parent.end_with(launcher)
    while True:
        try:
            stage, config, logs = pipe.recv()
        except EOFError:
            return
        from voxscale import dist  # not before OMP_NUM_THREADS is set, as it imports torch

        dist.keep()
        os.environ |= ALONE | {"VOXSCALE_TTY": "0"}
        _print_to(Path(logs))
        job = StageJob(stage=stage, config=config, threads=threads, port=0, parent="", tty=False)
        pipe.send(job.run())


def _print_to(folder: Path) -> None:
    """From now on, write what this process prints to a file; what a stage before left unwritten goes to its own."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
