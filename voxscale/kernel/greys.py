"""Maps of grey values in one pass, for images on the CPU: a piecewise-linear one, a power, or one after the other."""

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.kernel import library

LEAST, GREATEST = 0.5, 2.0
"""Exponents whose powers are tested; others are left to torch."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The map of each image: the sum over three parts of `height * clamp((value - start) / width, 0, 1)`.

    Attributes:
        start: Where the parts of each image begin.
        width: How wide they are, above 0.
        height: What each adds.
        on: Whether an image is mapped at all.
    """

    start: Float[Tensor, "n 3"]
    width: Float[Tensor, "n 3"]
    height: Float[Tensor, " 3"]
    on: tuple[bool, ...]


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled library with the types of this function; None as in `library`."""
    found = library()
    if found is None:
        return None
    pointer = ctypes.c_void_p
    found.change_greys.argtypes = [
        pointer, pointer, pointer, pointer, ctypes.c_float, ctypes.c_int64, ctypes.c_int, pointer
    ]  # fmt: skip
    found.change_greys.restype = None
    return found


def change_greys(
    images: Float[Tensor, "n 1 z y x"],
    parts: Parts | None = None,
    exponents: Float[Tensor, " n"] | None = None,
    *,
    wide: bool = True,
) -> Float[Tensor, "n 1 z y x"] | None:
    """Map the values of each image, then raise them to a power.

    The map has the bits that torch gives. Of the power the relative error is below 2^-22 (of exponents 0.7 to 1.5 below
    1.25 * 2^-23, 2 units in the last place), and its bits are the same on every machine and wherever a value stands.

    Args:
        images: Values; those that are raised are 0 or more and below 2^100.
        parts: The map; None for none.
        exponents: The power for each image; None for none. Results below 2^-125 may be 0.
        wide: Whether several values are worked on at a time; switched off to compare.

    Returns:
        The values; None if it must be done by torch: on another device, in another number type, with an exponent that
        is not `LEAST` to `GREATEST`, or without the kernel.
    """
    native = load() if images.device.type == "cpu" else None
    powers = [1.0] * len(images) if exponents is None else exponents.tolist()
    if native is None or images.dtype != torch.float32 or not all(LEAST <= one <= GREATEST for one in powers):
        return None
    images, out = images.contiguous(), torch.empty(images.shape)
    told = None if parts is None else [one.float().contiguous() for one in (parts.start, parts.width, parts.height)]
    for row, image in enumerate(images):
        curve: list[int | None] = [None, None, None]
        if told is not None and parts is not None and parts.on[row]:
            curve = [told[0][row].data_ptr(), told[1][row].data_ptr(), told[2].data_ptr()]
        native.change_greys(image.data_ptr(), *curve, powers[row], image.numel(), int(wide), out[row].data_ptr())
    return out
