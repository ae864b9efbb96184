"""Small pictures of scans for ledgers and lists."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 96
"""Longer side of a thumbnail in pixels."""


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
    plane = values[..., values.shape[-3] // 2, :, :].astype(np.float64)
    finite = plane[np.isfinite(plane)]
    if window is None:
        ends = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
        window = float(ends[0]), float(ends[1])
    low, high = window
    grey = np.clip((np.nan_to_num(plane, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12), 0, 1)
    pixels = (grey * 255).round().astype(np.uint8)
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    if not planar:
        pixels = np.ascontiguousarray(pixels[::-1, ::-1])
    tall, wide = pixels.shape[0] * spacing[1], pixels.shape[1] * spacing[2]
    scale = size / max(tall, wide)
    shape = max(1, round(wide * scale)), max(1, round(tall * scale))
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
