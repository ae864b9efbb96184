"""A reader for tests that some files do something bad to: by name a crash, a memory bomb, a hang."""

import itertools
import os
import signal
import time

import numpy as np

from data_prep import scan


def take_in(job):
    """As `data_prep.scan.take_in`, in its process."""
    name = job.files[0].name
    if "segfault" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    mark = job.scratch / f"{name}.mark"
    if "always-killed" in name or ("once-killed" in name and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "terminated" in name:
        os.kill(os.getpid(), signal.SIGTERM)  # is ignored
    if "bomb" in name:  # piece by piece, so that no single request is too large
        return {"never": sum(len(held) for held in [np.empty(1 << 22) for _ in itertools.count()])}
    if "hang" in name:
        time.sleep(600)
    return scan.take_in(job)
