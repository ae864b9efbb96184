"""Running means of a scan at every so many voxels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def block_means(
    values: NDArray[np.float32], size: Sequence[int], steps: Sequence[int], mode: str
) -> NDArray[np.float32]:
    """What `scipy.ndimage.uniform_filter` gives at every so many voxels, bit by bit.

    Lines are filtered one by one, so those that a step along an earlier axis leaves out are never looked at.

    Args:
        values: (z, y, x).
        size: Voxels of the mean along each axis.
        steps: Voxels from one place that is kept to the next, along each axis.
        mode: What lies beyond the ends, as scipy names it.
    """
    out = values
    for axis, (width, step) in enumerate(zip(size, steps, strict=True)):
        if width > 1:
            out = ndimage.uniform_filter1d(out, width, axis=axis, mode=mode)
        out = out[tuple(slice(None, None, step) if number == axis else slice(None) for number in range(3))]
    return out
