"""Geometry of the slices of one volume: even, uneven, or sheared by a tilted gantry."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from voxscale.errors import DataError, GeometryError
from voxscale.io.dicom_frames import Frame
from voxscale.io.dicom_group import along
from voxscale.io.loaded import Irregular
from voxscale.volume import Affine, lps_to_sar

SLICE_TOLERANCE_MM = 0.01
SLICE_TOLERANCE = 0.01
"""A slice may lie off its place on the regular grid by 0.01 mm or by 1 % of the spacing, whichever is more:
room for positions written with two decimals, and far below what a network could see."""

WIDEST_GAP = 1.9
"""Largest gap between slices that may be interpolated across, in median gaps; where a slice is missing the gap is 2."""


@dataclass(frozen=True, slots=True)
class Stack:
    """How the slices of a volume lie.

    Attributes:
        frames: In order along the normal.
        affine: 4x4 of the even, unsheared grid, see `voxscale.volume.Volume` (array axes slice, row, column).
        places: (n,) mm of each slice along the normal from the first, or None if they are even.
        shifts: (n, 2) mm by which each slice is moved along its columns and rows against the grid, or None.
        spacing: mm between slices of the grid.
    """

    frames: list[Frame]
    affine: Affine
    places: NDArray[np.float64] | None
    shifts: NDArray[np.float64] | None
    spacing: float


def stack(frames: Sequence[Frame], irregular: Irregular) -> Stack:
    """Order slices and find their grid.

    Raises:
        DataError: With reason `single_slice`, `uneven_slices` or `missing_slices`.
        GeometryError: With reason `bad_affine` or `sheared`.
    """
    if len(frames) < 2:
        raise DataError("dicom series must have at least 2 slices to know their spacing", "single_slice")
    ordered = sorted(frames, key=along)
    first = ordered[0]
    right, down, sizes = axes_of(first)
    corners = np.stack([frame.corner for frame in ordered if frame.corner is not None])
    normal = np.cross(right, down)
    heights = (corners - corners[0]) @ normal
    gaps = np.diff(heights)
    spacing = float(np.median(gaps))
    drift = (corners - corners[0]) - heights[:, None] * normal
    straight = np.linalg.norm(drift, axis=1)
    limit = max(SLICE_TOLERANCE_MM, SLICE_TOLERANCE * spacing)
    step = (corners[-1] - corners[0]) / (len(ordered) - 1)
    off = corners - (corners[0] + np.arange(len(ordered))[:, None] * step)
    # Slices along a line that leans a little are the scan's own normal; one that leans more is a tilted gantry.
    leaning = float(straight[-1]) > max(limit, 1e-3 * float(heights[-1])) or float(straight.max()) > 50 * limit
    uneven = max(float(np.abs(gaps - spacing).max()), 0.0 if leaning else float(np.abs(off).max()))
    if leaning and irregular == "reject":
        degrees = float(np.degrees(np.arctan2(straight[-1], heights[-1])))
        raise GeometryError(
            f"dicom slices must lie at right angles to their normal, not sheared by {degrees:.1f} degrees; "
            "set read.irregular to resample",
            "sheared",
        )
    if uneven > limit:
        widest = float(gaps.max()) / spacing
        if widest > WIDEST_GAP:
            text = f"dicom series must have all its slices, not a gap of {widest:.1f} times the usual spacing"
            raise DataError(text, "missing_slices")
        if irregular == "reject":
            text = f"dicom slices must be evenly spaced, not off by {uneven:.3g} mm; set read.irregular to resample"
            raise DataError(text, "uneven_slices")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = right * sizes[1], down * sizes[0], corners[0]
    affine[:3, 2] = normal * spacing if leaning or uneven > limit else step
    shifts = np.stack([drift @ right, drift @ down], axis=1) if leaning else None
    return Stack(ordered, lps_to_sar(affine), heights if uneven > limit else None, shifts, spacing)


def axes_of(frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Direction along a row, along a column, and pixel sizes of a frame.

    Raises:
        GeometryError: With reason `bad_affine`.
    """
    assert frame.turn is not None  # callers have checked the geometry
    assert frame.size is not None
    right, down = frame.turn[:3], frame.turn[3:]
    if (frame.size <= 0).any() or not np.allclose([right @ right, down @ down, right @ down], [1, 1, 0], atol=1e-3):
        raise GeometryError("dicom orientation must be two unit vectors at right angles", "bad_affine")
    return right, down, frame.size


def regrid(values: NDArray[np.float32], found: Stack, outside: float) -> tuple[NDArray[np.float32], list[str]]:
    """Bring sheared or unevenly spaced slices onto the even grid, linearly.

    Args:
        values: (slice, row, column), in the order of the stack; may be changed in place.
        found: The stack.
        outside: Value of what no slice covers.

    Returns:
        The values on the grid, and what was done.
    """
    notes: list[str] = []
    out = values
    if found.shifts is not None:
        _, _, sizes = axes_of(found.frames[0])
        for number, (across, down) in enumerate(found.shifts):
            moved = (down / sizes[0], across / sizes[1])
            out[number] = ndimage.shift(out[number], moved, order=1, mode="constant", cval=outside)
        notes.append("the gantry was tilted; slices were moved within their planes onto an unsheared grid")
    if found.places is not None:
        count = round(float(found.places[-1]) / found.spacing) + 1
        at = np.interp(np.arange(count) * found.spacing, found.places, np.arange(len(found.places)))
        low = np.minimum(np.floor(at).astype(int), len(out) - 2)
        part = (at - low).astype(np.float32)
        out = np.empty((count, *values.shape[1:]), dtype=np.float32)
        for number, (first, share) in enumerate(zip(low.tolist(), part, strict=True)):  # not all at once, for memory
            out[number] = values[first] * (1 - share) + values[first + 1] * share
        notes.append(f"slices were unevenly spaced; {len(found.places)} were resampled to {count}")
    return out, notes
