"""Reject labels that mark nothing."""

from dataclasses import replace

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan
from data_prep.values import pieces


def check(scan: Scan, _rules: RulesConfig) -> str | None:
    """The reason if every label value is background."""
    label = scan.label
    if label is None:
        return None
    parts = (replace(label, voxels=label.voxels[where]) for where in pieces(label.voxels.shape))
    if any((part.values() != 0).any() for part in parts):
        return None
    return "label is background only"
