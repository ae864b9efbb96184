"""A stage as an object that submitit can carry to another process or machine."""

import logging
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import submitit

from launch.address import address_of
from voxscale.parent import end_with

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class StageJob:
    """One rank of a stage; submitit calls it in every process of the job.

    Attributes:
        stage: Which stage.
        config: Its config: plain data, so the code of the job may be a copy.
        threads: CPU threads per process.
        port: Where ranks meet on this machine; 0 derives a port from the job's number.
        parent: Launcher that a local job must not outlive, see `voxscale.parent`; empty for none.
        tty: Whether rank 0 draws a progress bar for a terminal.
    """

    stage: Stage
    config: Any
    threads: int
    port: int
    parent: str
    tty: bool

    def __call__(self) -> dict[str, Any]:
        """Run the stage; returns an `error` that the user can mend instead of raising it."""
        job = submitit.JobEnvironment()
        os.environ |= {
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "MASTER_ADDR": "127.0.0.1" if self.parent else address_of(job.hostnames[0]),
            "MASTER_PORT": str(self.port or 20000 + int(job.job_id.split("_")[0]) % 20000),
            "OMP_NUM_THREADS": str(self.threads),
            "VOXSCALE_TTY": "1" if self.tty else "0",
        }
        end_with(self.parent)
        # DeepSpeed still calls collectives by names that torch is about to retire.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        return self.run()

    def run(self) -> dict[str, Any]:
        """The same in a process whose environment and end are somebody else's care."""
        from voxscale.errors import PreemptedError, VoxScaleError, missing_package_text, system_error_text
        from voxscale.signals import ending

        preempted = None
        try:
            again = signal.getsignal(signal.SIGUSR2)  # submitit's
            with ending(self.stage, lambda number: _unheard(number, again)):
                self._train()
        except PreemptedError as error:
            preempted = error
        except VoxScaleError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            return {"error": system_error_text(error), "kind": "OSError"}
        except Exception as error:  # a defect: the trace goes to this rank's log, one line to the launcher
            if missing := missing_package_text(error):
                return {"error": missing, "kind": type(error).__name__}
            logging.getLogger("voxscale").exception("%s failed", self.stage)
            return {"error": f"{self.stage} failed with {type(error).__name__}: {error}", "kind": "Exception"}
        finally:
            if (dist := sys.modules.get("voxscale.dist")) is not None:
                dist.stop()  # threads of a group left open can abort the process at its end, answer or not
        return {} if preempted is None else _ended(preempted.signal, str(preempted))

    def _train(self) -> None:
        # Imported here, so that submitting needs neither torch nor the stage's code.
        import torch

        from voxscale.log import setup

        torch.set_num_threads(self.threads)
        setup()
        match self.stage:
            case "pretrain":
                from pretrain.train import pretrain

                pretrain(self.config)
            case "finetune":
                from finetune.train import finetune

                finetune(self.config)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before preemption or time-out: queue the same job again.

        Nothing is saved here, in a signal handler; the run folder holds the
        last checkpoint, and the stage goes on from it.
        """
        return submitit.helpers.DelayedSubmission(self)


def _unheard(number: int, again: Any) -> int:
    """As `_ended`, in a thread beside a main thread that never returns; gives the status to leave with."""
    try:
        if number != signal.SIGTERM and callable(again):
            again(signal.SIGUSR2, None)
    except SystemExit as end:  # rank 0 is queued again
        return int(end.code or 0)
    return 1 if number == signal.SIGTERM else 0


def _ended(name: str, message: str) -> dict[str, Any]:
    """What follows a signal, once the stage has saved.

    SIGUSR1 and SIGUSR2 ask to make room: submitit's own handler, in place
    again, queues the job anew from rank 0; the other ranks end without an
    answer. After SIGTERM whoever sent it decides: Slurm requeues by itself what
    it preempts, and a job that a user cancelled must not come back.
    """
    if name == "SIGTERM":
        return {"error": message, "kind": "PreemptedError"}
    signal.raise_signal(signal.SIGUSR2)  # on rank 0 this does not return
    sys.exit(0)
