"""Reject segmentations that lie among the scans."""

import numpy as np

from data_prep.config import RulesConfig
from data_prep.rules.scan import Scan


def check(scan: Scan, rules: RulesConfig) -> str | None:
    """The reason if the values are whole numbers from 0 to 255 that hardly change from voxel to voxel.

    Only neighbours along x that are both not 0 count: a scan's noise changes
    most of them, while a label changes only where two structures touch. The
    border to the background is left out because thin structures are mostly
    border.
    """
    if scan.planar:
        return None  # an image's flat areas look like a mask's
    if scan.ends[0] < 0 or scan.ends[1] > 255:
        return None
    pairs = equal = 0
    for plane in scan.values:
        if (plane != np.rint(plane)).any():
            return None
        left, right = plane[:, :-1], plane[:, 1:]
        both = (left != 0) & (right != 0)
        pairs += int(np.count_nonzero(both))
        equal += int(np.count_nonzero(both & (left == right)))
    share = equal / pairs if pairs else 1.0
    if share < rules.label_like:
        return None
    return (
        f"{100 * share:.0f} % of neighbouring voxels are equal whole numbers, as in a segmentation; take it out of "
        "the sources, or put it into labels/ beside images/; if it is a scan, raise rules.label_like"
    )
