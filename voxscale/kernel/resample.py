"""Trilinear interpolation along the axes of a volume, for volumes on the CPU."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.kernel import library


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled library with the types of this function; None as in `library`."""
    found = library()
    if found is None:
        return None
    found.sample_grid.argtypes = [ctypes.c_void_p] * 8
    found.sample_grid.restype = None
    return found


def sample_along_axes(
    volumes: Float[Tensor, "b 1 d h w"],
    along: Sequence[Float[Tensor, "b _"]],
    scale: Float[Tensor, "b 2"] | None = None,
) -> Float[Tensor, "b 1 z y x"] | None:
    """What `grid_sample` gives on a grid whose axes are those of the volumes, in a tenth of its time.

    Finite values come out bit by bit the same.

    Linear, with aligned corners; points beyond the outermost voxel centres take their values.

    Args:
        volumes: To be read.
        along: Coordinates of the points along z, y and x, -1 to 1 from the first voxel's centre to the last one's.
        scale: What is read becomes `scale[0] * value + scale[1]`, clamped to 0..1, with torch's bits too; None to
            leave it as it is.

    Returns:
        The values; None if it must be done by torch: on another device, in another number type, one voxel thick, or
        without the kernel.
    """
    native = load() if volumes.device.type == "cpu" else None
    if native is None or volumes.dtype != torch.float32 or min(volumes.shape[2:]) < 2:
        return None
    volumes, axes = volumes.contiguous(), [axis.float().contiguous() for axis in along]
    points = [axis.shape[1] for axis in axes]
    out = torch.empty(len(volumes), 1, *points)
    told = None if scale is None else scale.float().contiguous()
    size, count = np.array(volumes.shape[2:], dtype=np.int64), np.array(points, dtype=np.int64)
    for row in range(len(volumes)):
        native.sample_grid(
            volumes[row].data_ptr(), size.ctypes.data, *(axis[row].data_ptr() for axis in axes), count.ctypes.data,
            None if told is None else told[row].data_ptr(), out[row].data_ptr(),
        )  # fmt: skip
    return out
