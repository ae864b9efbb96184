"""Reject scans whose voxel spacing is implausible, such as one given in another unit."""

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, rules: RulesConfig) -> str | None:
    """The reason if a spacing, or the ratio of two, is out of range."""
    if not scan.spacing_known:
        return None
    spacing = scan.volume.spacing[1:] if scan.planar else scan.volume.spacing
    shown = [float(f"{mm:.4g}") for mm in spacing]
    low, high = rules.spacing
    if min(spacing) < low or max(spacing) > high:
        return f"spacing {shown} mm is not within {low:g} to {high:g} mm"
    if max(spacing) > rules.max_spacing_ratio * min(spacing):
        return f"spacing {shown} mm has a ratio above {rules.max_spacing_ratio:g}"
    return None
