"""`python -m pretrain`, sent a signal when it first imports a module: python worker_asked.py MODULE SIGNAL ..."""

import os
import runpy
import signal
import sys
from importlib.abc import MetaPathFinder
from typing import Any

module, name, *arguments = sys.argv[1:]


class Asking(MetaPathFinder):
    """Finds nothing."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        """Called for every module that is not imported yet."""
        if fullname == module:
            print("asked", file=sys.stderr)  # standard output may be redirected meanwhile
            os.kill(os.getpid(), signal.Signals[name])


sys.meta_path.insert(0, Asking())
sys.argv = ["pretrain", *arguments]
runpy.run_module("pretrain", run_name="__main__", alter_sys=True)
