"""Reject labels whose values are not classes."""

import numpy as np

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan
from voxscale.kernel.filters import different


def check(scan: Scan, _rules: RulesConfig) -> str | None:
    """The reason if a label value is not a whole number from 0 to 255, or not declared."""
    if scan.label is None:
        return None
    values = different(scan.label.voxels).astype(np.float64) * scan.label.slope + scan.label.intercept
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        return "label has values that are not whole numbers"
    if values.min() < 0 or values.max() > 255:
        return f"label has values from {values.min():g} to {values.max():g}, not within 0 to 255"
    undeclared = sorted({int(value) for value in values} - set(scan.classes) - {0})
    if scan.classes and undeclared:
        return f"label has values {undeclared} that the task does not declare"
    return None
