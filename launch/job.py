"""A stage as an object that submitit can carry to another process or machine."""

import os
import threading
import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import submitit

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class StageJob:
    """One rank of a stage; submitit calls it in every process of the job.

    Attributes:
        stage: Which stage.
        config: Its config: plain data, so the code of the job may be a copy.
        threads: CPU threads per process.
        port: Where ranks meet on this machine; 0 derives a port from the job's number.
        parent: (process id, start time) of a launcher that a local job must not outlive, or None.
        tty: Whether rank 0 draws a progress bar for a terminal.
    """

    stage: Stage
    config: Any
    threads: int
    port: int
    parent: tuple[int, float] | None
    tty: bool

    def __call__(self) -> dict[str, Any]:
        """Run the stage; returns an `error` that the user can mend instead of raising it."""
        job = submitit.JobEnvironment()
        local = self.parent is not None
        os.environ |= {
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "MASTER_ADDR": "127.0.0.1" if local else job.hostnames[0],
            "MASTER_PORT": str(self.port or 20000 + int(job.job_id.split("_")[0]) % 20000),
            "OMP_NUM_THREADS": str(self.threads),
            "VOXSCALE_TTY": "1" if self.tty else "0",
        }
        if self.parent is not None:
            threading.Thread(target=_end_with, args=self.parent, daemon=True).start()
        # DeepSpeed still calls collectives by names that torch is about to retire.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        return self._run()

    def _run(self) -> dict[str, Any]:
        # Imported here, so that submitting needs neither torch nor the stage's code.
        import torch

        from voxscale.errors import VoxScaleError, system_error_text
        from voxscale.log import setup

        torch.set_num_threads(self.threads)
        setup()
        try:
            match self.stage:
                case "pretrain":
                    from pretrain.train import pretrain

                    pretrain(self.config)
                case "finetune":
                    from finetune.train import finetune

                    finetune(self.config)
        except VoxScaleError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            return {"error": system_error_text(error), "kind": "OSError"}
        return {}

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before preemption or time-out: queue the same job again.

        Nothing is saved here, in a signal handler; the run folder holds the
        last checkpoint, and the stage goes on from it.
        """
        return submitit.helpers.DelayedSubmission(self)


def _end_with(pid: int, started: float) -> None:
    """End this process when its launcher is gone, so that no orphan writes to the run folder."""
    while True:
        try:
            if abs(psutil.Process(pid).create_time() - started) > 1:
                break
        except psutil.NoSuchProcess:
            break
        time.sleep(1.0)
    os._exit(1)
