"""A reader for tests that some files do something bad to: by name a crash, a memory bomb, a hang; or their labels."""

import itertools
import os
import signal
import time
from unittest import mock

import numpy as np

from data_prep import scan
from voxscale.io import dicom_header


def take_in(job):
    """As `data_prep.scan.take_in`, in its process."""
    _harm(job.files[0].name, job.scratch)
    return scan.take_in(job)


def take_in_labels(job):
    """The same, where it is the label of a good image that does it, once the image is read."""
    real = scan.load_file

    def load(path, *rest):
        if path.parent.name == "labels":
            _harm(path.name, job.scratch)
        return real(path, *rest)

    with mock.patch.object(scan, "load_file", load):
        return scan.take_in(job)


def read_headers(paths):
    """As `voxscale.io.dicom_header.read_headers`, but some files hang it."""
    if any("hang" in path.rpartition("/")[2] for path in paths):
        time.sleep(600)
    return dicom_header.read_headers(paths)


def _harm(name, scratch):
    if "segfault" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    mark = scratch / f"{name}.mark"
    if "always-killed" in name or ("once-killed" in name and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "terminated" in name:
        os.kill(os.getpid(), signal.SIGTERM)  # is ignored
    if "bomb" in name:  # piece by piece, so that no single request is too large
        [np.empty(1 << 22) for _ in itertools.count()]
    if "hang" in name:
        time.sleep(600)
