"""Reject labels that do not lie on the grid of their scan."""

import itertools

import numpy as np

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, rules: RulesConfig) -> str | None:
    """The reason if shapes differ or a corner of the label is elsewhere in the world."""
    if scan.label is None:
        return None
    shape = scan.volume.shape
    if scan.label.voxels.shape != shape:
        return f"label has shape {list(scan.label.voxels.shape)}, not {list(shape)}"
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))], dtype=np.float64)
    apart = corners @ (scan.label.affine - scan.volume.affine).T
    worst = float(np.linalg.norm(apart[:, :3], axis=1).max())
    if worst > rules.grid_tolerance:
        return f"label lies up to {worst:.3g} mm off, more than {rules.grid_tolerance:g} mm"
    return None
