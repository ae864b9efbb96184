"""Large arrays in memory that is used again, in huge pages where the system has them."""

import contextlib
import ctypes
import math
import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LEAST = 1 << 20
"""Bytes from which on memory is kept; smaller arrays are numpy's."""
KEPT = 8
"""Free pieces that a process keeps at most."""
MOST = 1 << 26
"""Bytes of the largest piece that is kept."""
HUGE = 1 << 21
"""Bytes of a huge page; arrays begin at one, so at a cache line too."""

_free: deque[memoryview] = deque(maxlen=KEPT)  # the piece that lies there longest goes first


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An array of any content, as `numpy.empty` gives it, in C order.

    Its memory is handed out again once neither the array nor anything that
    was made from it without a copy (views, tensors, memoryviews) is alive.

    Args:
        shape: Its shape.
        dtype: Its number type.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not LEAST <= size <= MOST:
        return np.empty(shape, dtype=kind)
    piece = _piece(size)
    # All arrays share one lease in the end, and numpy never looks behind it: its end is the end of them all.
    lease = (ctypes.c_uint8 * size).from_buffer(piece)
    weakref.finalize(lease, _free.append, piece).atexit = False
    return np.frombuffer(memoryview(lease), dtype=kind).reshape(shape)


def _piece(size: int) -> memoryview:
    """A free piece that fits and is not much larger, or new memory."""
    for _ in range(len(_free)):
        try:
            piece = _free.popleft()  # by one caller alone, so no lock is needed, which a finalizer could wait for
        except IndexError:
            break
        if size <= len(piece) <= 2 * size + HUGE:
            return piece
        _free.append(piece)
    room = -(-size // HUGE) * HUGE
    # Private, as a forked process must not write to what its parent reads. Pages that are not touched cost nothing.
    memory = mmap.mmap(-1, room + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    start = -np.frombuffer(memory, dtype=np.uint8).ctypes.data % HUGE
    return memoryview(memory)[start : start + room]
