"""Label and blend of Volume Fusion in one pass, for volumes on the CPU."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from voxscale.kernel import library

EXACT = (1, 2, 4)
"""Numbers of levels whose coefficients a difference is multiplied by without rounding, fused with a sum or not."""

Grid = tuple[NDArray[np.uint8], Sequence[NDArray[np.int64]]]
"""Class of each cell, and per axis what each voxel adds to its cell's number."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled library with the types of this function; None as in `library`."""
    found = library()
    if found is None:
        return None
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    found.fuse_grid.argtypes = [*[pointer] * 9, whole]
    found.fuse_grid.restype = None
    return found


def fuse_grids(
    background: Float[Tensor, "b 1 z y x"], foreground: Float[Tensor, "b 1 z y x"], grids: Sequence[Grid], levels: int
) -> tuple[UInt8[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]] | None:
    """Paint the label of a grid and blend by it, with the bits that `torch.lerp` gives.

    Args:
        background: Volumes of class 0.
        foreground: Volumes of class `levels`.
        grids: One of each sample.
        levels: The coefficient of class k is k / levels.

    Returns:
        Label and blend; None if it must be done by torch: on another device, in another number type, with other
        levels than `EXACT`, or without the kernel.
    """
    native, pair = load(), (background, foreground)
    plain = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in pair)
    if native is None or not plain or levels not in EXACT or not len(background):
        return None
    size = np.array(background.shape[2:], dtype=np.int64)
    fused = torch.empty(background.shape)
    label = torch.empty(background.shape, dtype=torch.uint8)
    for row, (table, places) in enumerate(grids):
        back, front = (part[row].contiguous() for part in pair)
        z, y, x = (np.ascontiguousarray(one) for one in places)
        native.fuse_grid(
            back.data_ptr(), front.data_ptr(), fused[row].data_ptr(), label[row].data_ptr(), table.ctypes.data,
            z.ctypes.data, y.ctypes.data, x.ctypes.data, size.ctypes.data, levels,
        )  # fmt: skip
    return label, fused
