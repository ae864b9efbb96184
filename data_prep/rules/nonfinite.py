"""Reject scans with NaN or infinite values."""

import numpy as np

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan
from data_prep.values import slabs


def check(scan: Scan, _rules: RulesConfig) -> str | None:
    """The reason if any value is NaN or infinite."""
    if np.isfinite(scan.ends).all():
        return None
    count = sum(slab.size - int(np.isfinite(slab).sum()) for slab in slabs(scan.values))
    return f"{count} voxels are NaN or infinite" if count else None
