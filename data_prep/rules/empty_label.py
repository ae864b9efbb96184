"""Reject labels that mark nothing."""

from dataclasses import replace

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, _rules: RulesConfig) -> str | None:
    """The reason if every label value is background."""
    label = scan.label
    if label is None or any((replace(label, voxels=plane).values() != 0).any() for plane in label.voxels):
        return None
    return "label is background only"
