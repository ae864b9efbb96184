"""CT as whole Hounsfield units in int16: one number type for all of it, whatever a file keeps its numbers as."""

from dataclasses import replace

import numpy as np

from voxscale.volume import Volume

BLOCK = 1 << 16
"""Voxels that are looked at together, about."""


def as_hounsfield(volume: Volume) -> Volume:
    """A CT in int16 with slope 1 and intercept 0 where that gives back every value, else the volume as it is.

    So a CT of fractions of HU, of values beyond 16 bits, or with NaN keeps its
    numbers and scaling, as do all other modalities. CT of 8 bits becomes
    wider in memory; on disk its upper bit planes are empty and cost next to nothing.

    Args:
        volume: Any scan; it is not changed.
    """
    voxels = volume.voxels
    if volume.modality != "CT" or voxels.dtype.kind not in "iu":
        return volume
    if (voxels.dtype, volume.slope, volume.intercept) == (np.dtype(np.int16), 1.0, 0.0):
        return volume
    limits = np.iinfo(np.int16)
    ends = [float(end) * volume.slope + volume.intercept for end in (voxels.min(), voxels.max())]
    if min(ends) < limits.min or max(ends) > limits.max:
        return volume
    out = np.empty(voxels.shape, dtype=np.int16)
    step = max(1, BLOCK // max(1, voxels[0].size))
    for start in range(0, len(voxels), step):
        values = voxels[start : start + step].astype(np.float64) * volume.slope + volume.intercept
        values = values.astype(np.float32)  # the values of a volume
        out[start : start + step] = values
        if not np.array_equal(out[start : start + step], values):
            return volume
    return replace(volume, voxels=out, slope=1.0, intercept=0.0)
