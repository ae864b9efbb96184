"""Memory that a step frees stays with the process, for the next step: on CPUs fresh pages cost as much as the maths."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`."""
ALL = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let glibc use freed arrays of any size again, and give none back to the system.

    By default arrays above 32 MB are mapped afresh each time: every page of an activation costs a fault and is
    filled with zeros by the system. Of a step of a STU-Net S on one core that was half of the time. All threads
    share one heap, so that what the forward pass frees serves the backward pass, which runs on another thread.

    Returns:
        Whether the C library knows these settings.
    """
    try:
        libc = ctypes.CDLL(None)
        return all(libc.mallopt(*each) == 1 for each in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, ALL), (M_ARENA_MAX, 1)))
    except (AttributeError, OSError):
        return False
