"""Reject scans that are too small to learn from: single slices, scouts, slivers."""

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, rules: RulesConfig) -> str | None:
    """The reason if an axis has too few voxels or too short a field of view."""
    if scan.planar:
        sides = scan.volume.shape[1:]
        few = min(sides) < rules.min_pixels
        return f"image of {sides[0]} x {sides[1]} pixels has a side below {rules.min_pixels}" if few else None
    shape = scan.volume.shape
    if min(shape) < rules.min_slices:
        return f"shape {list(shape)} has an axis of fewer than {rules.min_slices} voxels"
    extent = [n * s for n, s in zip(shape, scan.volume.spacing, strict=True)]
    if min(extent) < rules.min_extent:
        return f"field of view {[round(mm, 2) for mm in extent]} mm has an axis shorter than {rules.min_extent:g} mm"
    return None
