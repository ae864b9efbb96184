"""Reject labels that mark nothing."""

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, _rules: RulesConfig) -> str | None:
    """The reason if every label value is background."""
    if scan.label is None or (scan.label.values() != 0).any():
        return None
    return "label is background only"
