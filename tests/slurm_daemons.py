"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, for tests."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from ports import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")


def installed() -> bool:
    """Whether all of it is there, and may be started: it wants root."""
    paths = f"{os.environ['PATH']}:/usr/sbin"
    return os.geteuid() == 0 and all(shutil.which(name, path=paths) for name in DAEMONS)


def _write_config(folder: Path, cores: int) -> None:
    host, (control, first, second) = socket.gethostname().split(".")[0], free_ports(3)
    lines = {
        "ClusterName": "ci",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": control,
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "node-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "sched_interval=1,sched_min_interval=0,bf_interval=1",
        "ReturnToService": 2,
        "KillWait": 2,
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    for name, port in (("n1", first), ("n2", second)):
        text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} RealMemory=2000\n"
    text += "PartitionName=ci Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


@contextlib.contextmanager
def slurm(folder: Path, cores: int = 4) -> Generator[dict[str, str]]:
    """Run the daemons; what they write goes to the folder.

    Yields:
        Variables under which Slurm's commands find them.
    """
    for part in ("state", "munge", "node-n1", "node-n2"):
        (folder / part).mkdir(parents=True)
    _write_config(folder, cores)
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    environment = os.environ | variables
    secret = folder / "munge" / "key"
    secret.write_bytes(os.urandom(64))
    secret.chmod(0o400)
    munged = ["munged", "-F", "--force", f"--key-file={secret}"]
    munged += [f"--{name}-file={folder}/munge/{name}" for name in ("pid", "seed", "log")]
    commands = [[*munged, f"--socket={folder}/munge/socket"], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", name] for name in ("n1", "n2")]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "daemons.log").open("wb"))
        for command in commands:
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, daemon)
            time.sleep(0.3)
        _wait(environment, folder)
        yield variables


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _wait(environment: dict[str, str], folder: Path) -> None:
    deadline, command = time.monotonic() + 60, ["srun", "-N2", "printenv", "SLURMD_NODENAME"]
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=False)
            if sorted(done.stdout.split()) == ["n1", "n2"]:
                return
        time.sleep(0.5)
    raise AssertionError((folder / "daemons.log").read_text()[-2000:])
