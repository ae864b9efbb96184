"""Compile the operator that DeepSpeed needs on CPUs, once, at installation: `python -m voxscale.engine.compile`."""

import os
import shutil
import sys

import torch

from voxscale import dist
from voxscale.errors import ConfigError
from voxscale.files import locked


def compile_ops() -> None:
    """Compile DeepSpeed's shared-memory collectives unless a GPU makes them unnecessary.

    DeepSpeed would do this at the first start of a run, and a run killed then
    leaves a lock that later ones wait on for ever; here such a lock is removed.

    Raises:
        ConfigError: If there is no C++ compiler; names the package to install.
    """
    if torch.cuda.is_available():
        return
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "g++ must be installed, DeepSpeed compiles an operator with it; run `apt-get install g++` on Debian or "
            "Ubuntu, `dnf install gcc-c++` on Fedora or Red Hat"
        )
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # ninja is there
    folder = dist.extensions()
    with locked(folder):
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
        compile_ops()
    except ConfigError as error:
        sys.exit(f"error: {error}")
