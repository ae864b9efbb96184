"""Reject scans that hold one value only."""

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, _rules: RulesConfig) -> str | None:
    """The reason if all values are the same."""
    low, high = scan.ends
    return f"all voxels are {low:g}" if low == high else None
