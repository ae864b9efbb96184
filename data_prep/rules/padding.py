"""Reject scans that are nearly all padding: one constant value around what was scanned."""

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan
from data_prep.values import ends, share_of
from voxscale.kernel.filters import Planes

BORDER_SHARE = 0.5
"""Share of the four in-plane corners of all slices that must hold the value for it to count as padding."""


def check(scan: Scan, rules: RulesConfig) -> str | None:
    """The reason if more voxels lie outside the scan than the setting allows."""
    value = padding_value(scan.values, scan.ends[0])
    if value is None:
        return None
    share = scan.levels.share(value) if scan.levels else share_of(scan.values, value)
    if share <= rules.max_padding:
        return None
    return f"{100 * share:.1f} % of the voxels lie outside the scan, more than {100 * rules.max_padding:g} %"


def padding_value(values: Planes, low: float | None = None) -> float | None:
    """The value that marks voxels outside the scan, if there is one.

    It is the lowest value, and most corners of the slices hold exactly it: a
    scanner's own noise is never that even.

    Args:
        values: (z, y, x), or (3, 1, y, x) for colour, which has none.
        low: The lowest of them, if it is known.
    """
    if len(values.shape) != 3:
        return None
    low = ends(values)[0] if low is None else low
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    return low if float((corners == low).mean()) >= BORDER_SHARE else None
