"""Quality rules, one per file: each looks at a scan and returns a reason to reject it, or None."""

from collections.abc import Callable

from data_prep.config import RulesConfig
from data_prep.rules import (
    constant,
    empty_label,
    extent,
    hu_range,
    label_grid,
    label_like,
    label_values,
    nonfinite,
    padding,
    spacing,
)
from data_prep.rules.scan import Scan

Rule = Callable[[Scan, RulesConfig], str | None]

RULES: tuple[tuple[str, Rule], ...] = (
    ("nonfinite", nonfinite.check),
    ("constant", constant.check),
    ("extent", extent.check),
    ("spacing", spacing.check),
    ("label_like", label_like.check),
    ("hu_range", hu_range.check),
    ("padding", padding.check),
    ("label_grid", label_grid.check),
    ("label_values", label_values.check),
    ("empty_label", empty_label.check),
)
"""Name in the ledger and check, in the order in which they are asked; the first reason counts."""


def first_reason(scan: Scan, rules: RulesConfig) -> tuple[str, str] | None:
    """Name and reason of the first rule that rejects the scan, or None."""
    for name, check in RULES:
        reason = check(scan, rules)
        if reason is not None:
            return name, reason
    return None
