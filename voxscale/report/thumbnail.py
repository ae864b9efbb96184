"""Small pictures of scans for ledgers and lists."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 96
"""Longer side of a thumbnail in pixels."""
BAND = 1 << 18
"""Pixels that are made grey at a time, about: a 2D image may be large."""


def thumbnail(
    values: NDArray[np.floating[Any]],
    spacing: tuple[float, float, float],
    window: tuple[float, float] | None = None,
    size: int = SIZE,
) -> bytes:
    """Draw the middle slice of a scan, in its true proportions.

    Args:
        values: (z, y, x), or (3, 1, y, x) in colour; may hold anything, NaN too.
        spacing: mm along z, y, x.
        window: Values drawn black and white; None takes the 1st and 99th percentile.
        size: Longer side in pixels.

    Returns:
        A PNG of a few KB; anterior at the top and the patient's right on the left for volumes, as stored for images.
    """
    planar = values.shape[-3] == 1
    plane = values[..., values.shape[-3] // 2, :, :]
    low, high = window or _ends(plane)
    pixels: NDArray[np.uint8] = np.empty(plane.shape, dtype=np.uint8)
    step = max(1, BAND // plane.shape[-1])
    for row in range(0, plane.shape[-2], step):
        pixels[..., row : row + step, :] = _greys(plane[..., row : row + step, :], low, high)
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    if not planar:
        pixels = np.ascontiguousarray(pixels[::-1, ::-1])
    tall, wide = pixels.shape[0] * spacing[1], pixels.shape[1] * spacing[2]
    scale = size / max(tall, wide)
    shape = max(1, round(wide * scale)), max(1, round(tall * scale))
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _ends(plane: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The 1st and 99th percentile of what is finite."""
    finite = np.isfinite(plane)
    known = (plane.reshape(-1) if finite.all() else plane[finite]).astype(np.float64)
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, (1, 99), overwrite_input=True)
    return float(low), float(high)


def _greys(part: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.uint8]:
    wide = np.nan_to_num(part.astype(np.float64), nan=low, posinf=high, neginf=low)
    return (np.clip((wide - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)
