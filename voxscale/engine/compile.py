"""The operator that DeepSpeed needs on CPUs: compiled at installation, loaded by every rank.

`python -m voxscale.engine.compile` compiles it.
"""

import os
import shutil
import sys

import torch

from voxscale import dist
from voxscale.errors import ConfigError
from voxscale.files import locked

PATIENCE_S = 900.0
"""Seconds to wait for other processes that compile or load; the first compilation takes about half a minute."""


def load_ops() -> None:
    """Load DeepSpeed's shared-memory collectives, compiled first if need be, unless a GPU makes them unnecessary.

    DeepSpeed would do this by itself, under a lock that is a plain file: a
    process that is killed while it loads leaves the file, and every later one
    waits for it without end. Here a lock is held that goes with its process,
    so a file that is there is nobody's and is removed.

    Raises:
        ConfigError: If it must be compiled and there is no C++ compiler; names the package to install.
        DataError: If other processes hold the folder for too long.
    """
    if torch.cuda.is_available():
        return
    folder = dist.extensions()
    if not any(folder.glob("*/*.so")) and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "g++ must be installed, DeepSpeed compiles an operator with it; run `apt-get install g++` on Debian or "
            "Ubuntu, `dnf install gcc-c++` on Fedora or Red Hat"
        )
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # ninja is there
    with locked(folder, PATIENCE_S):
        for stale in folder.glob("*/lock"):
            stale.unlink()
        from deepspeed.accelerator import get_accelerator  # reads DS_ACCELERATOR when it is imported

        accelerator = get_accelerator()
        assert accelerator is not None
        builder = accelerator.create_op_builder("ShareMemCommBuilder")
        assert builder is not None
        builder.load(verbose=False)


if __name__ == "__main__":
    try:
        load_ops()
    except ConfigError as error:
        sys.exit(f"error: {error}")
