"""Reject CT scans whose values cannot be Hounsfield units."""

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan
from data_prep.values import percentiles


def check(scan: Scan, rules: RulesConfig) -> str | None:
    """The reason if a CT's values are off: unscaled, without intercept, or air alone."""
    if scan.volume.modality != "CT":
        return None
    wanted = (0.5, 50.0, 99.5)
    found = scan.levels.percentiles(wanted) if scan.levels else percentiles(scan.values, wanted)
    low, median, high = (float(value) for value in found)
    if low < rules.hu_low:
        return f"0.5th percentile {low:g} HU is below {rules.hu_low:g} HU"
    if median > rules.hu_median:
        return f"median {median:g} HU is above {rules.hu_median:g} HU"
    least, most = rules.hu_high
    if not least <= high <= most:
        return f"99.5th percentile {high:g} HU is not within {least:g} to {most:g} HU"
    return None
