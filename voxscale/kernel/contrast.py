"""A piecewise-linear map of grey values in one pass, for images on the CPU."""

import ctypes
from functools import lru_cache

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
    pointer = ctypes.c_void_p
    found.spread_parts.argtypes = [pointer, pointer, pointer, pointer, ctypes.c_int64, pointer]
    found.spread_parts.restype = None
    return found


def spread_parts(
    images: Float[Tensor, "n 1 z y x"],
    start: Float[Tensor, "n 3"],
    width: Float[Tensor, "n 3"],
    height: Float[Tensor, " 3"],
) -> Float[Tensor, "n 1 z y x"] | None:
    """Sum over three parts of `height * clamp((value - start) / width, 0, 1)`, with the bits that torch gives.

    Args:
        images: Values.
        start: Where the parts of each image begin.
        width: How wide they are, above 0.
        height: What each adds.

    Returns:
        The values; None if it must be done by torch: on another device, in another number type, or without the kernel.
    """
    native = load() if images.device.type == "cpu" else None
    if native is None or images.dtype != torch.float32:
        return None
    images, out = images.contiguous(), torch.empty(images.shape)
    start, width, height = (part.float().contiguous() for part in (start, width, height))
    for row, image in enumerate(images):
        native.spread_parts(
            image.data_ptr(), start[row].data_ptr(), width[row].data_ptr(), height.data_ptr(), image.numel(),
            out[row].data_ptr(),
        )  # fmt: skip
    return out
