"""Heads whose face could be rebuilt from the scan, and blanking that face; geometry only, no trained weights.

A head is told by its size, by skin that lies inside the field of view, and by
what lies under the skin: bone in CT, in MR the dark shell of the skull. Its
face is there if, below the brow, the front of the body stands nearly as far
forward as the forehead. Blanking cuts along a plane that leans backwards from
the brow, as Quickshear does (Schimke & Hale 2011), placed by the skin instead
of the brain.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.privacy.bits import Bits, keep_largest, open_mask
from data_prep.privacy.grid import COARSE, Coarse
from data_prep.values import ends, share_of
from voxscale.kernel.filters import Planes
from voxscale.volume import Affine, Modality

SKIN_HU = -300.0
SKIN_SHARE = 0.12
"""MR: skin begins at this share of the 99th percentile."""
BONE_HU = 250.0

ACROSS_MM = (110.0, 215.0)
LONG_MM = (135.0, 245.0)
"""Width (left to right) and length (front to back) of a head, skin included, children to large adults."""
CUT_SHARE = 0.05
"""Most of a side of the field of view that the skin of a whole head may touch."""

SHELL_MM, INNER_MM, SCALP_MM = (7.0, 15.0), (20.0, 30.0), (2.0, 7.0)
"""Depths under the skin of skull, brain and scalp."""
SKULL_DARK, SCALP_BRIGHT = 0.8, 1.3
"""MR: the skull is darker than this share of the brain, or the scalp brighter than this, where air is not all zero."""
BONE_SHARE = 0.25
"""CT: least share of bone in the shell of the skull."""

BROW = 0.45
"""Height of the brow under the vertex over the length of the head: about 85 mm in an adult."""
FACE_BAND = (0.46, 0.75)
"""The face's part between brow and upper lip, in the same measure."""
STANDS_BACK_MM, FACE_TALL_MM = 20.0, 16.0
"""Front of a face: at most this far behind the forehead, over at least this height."""
CUT_MM, CUT_SLOPE, CUT_DEEPEST_MM = 14.0, 0.8, 75.0
"""The cut begins this far behind the forehead at the brow, goes back by so many mm per mm down, at most so far."""


@dataclass(frozen=True, slots=True)
class FaceFinding:
    """What was found.

    Attributes:
        head: Whether a head with its skin is in the scan.
        face: Whether its face could be rebuilt.
        mask: (z, y, x), true where voxels must go to prevent that; None without a face.
        reason: In plain words.
    """

    head: bool
    face: bool
    mask: NDArray[np.bool_] | None
    reason: str


def find_face(values: Planes, spacing: tuple[float, float, float], affine: Affine, modality: Modality) -> FaceFinding:
    """Look for a head and its face.

    Args:
        values: (z, y, x), indices rising to S, A, R.
        spacing: mm along z, y, x.
        affine: 4x4; not needed beyond the order of the axes, which is canonical.
        modality: CT or MR; others have no face.
    """
    del affine
    none = FaceFinding(False, False, None, "no head")
    if modality not in ("CT", "MR") or min(values.shape) < 4 or _too_small(values.shape, spacing):
        return none
    grid = Coarse(values, spacing)
    skin = _skin(grid, modality)
    if skin is None:
        return none
    around = _whole_head(skin)
    if around is None:
        return none
    top, long_mm = around
    if not _under_the_skin(grid, skin, top, modality, share_of(values, ends(values)[0])):
        return FaceFinding(False, False, None, "a head-sized body without skin over bone")
    front = _front(skin)
    brow = top - round(BROW * long_mm / COARSE[0]) if _vertex_seen(skin, top) else top
    forehead = float(np.nanmax(front[max(brow, 0) : top + 1])) if brow < top else float(np.nanmax(front))
    if not _has_face(front, top, brow, forehead, long_mm):
        return FaceFinding(True, False, None, "a head whose face is outside the scan or was removed")
    return FaceFinding(True, True, _cut(values.shape, spacing, brow, forehead), "a head with its face")


def _too_small(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> bool:
    """Whether a head cannot lie in the field of view, with two cells of the coarse grid to spare."""
    long_mm, across_mm = (n * mm for n, mm in zip(shape[1:], spacing[1:], strict=True))
    return long_mm < LONG_MM[0] - 2 * COARSE[1] or across_mm < ACROSS_MM[0] - 2 * COARSE[2]


def _skin(grid: Coarse, modality: Modality) -> Bits | None:
    """The largest body, filled slice by slice; None if it is not a whole head."""
    body = grid.above(SKIN_HU if modality == "CT" else SKIN_SHARE * grid.percentile(99))
    open_mask(body)
    if not keep_largest(body) or _whole_head(body) is None:
        return None  # closing and filling leave its size as it is and take nothing from the sides that it touches
    for number, plane in enumerate(body):
        closed = ndimage.binary_closing(np.pad(plane, 6), iterations=3)
        body.put(number, ndimage.binary_fill_holes(closed)[None, 6:-6, 6:-6])
    return body


def _whole_head(skin: Bits) -> tuple[int, float] | None:
    """Top slice and length of a body that has a head's size and lies inside the field of view; else None.

    Only the upper part counts, so that shoulders further down do no harm.
    """
    slices = np.flatnonzero([plane.any() for plane in skin])
    if len(slices) == 0:
        return None
    top = int(slices.max())
    upper = skin[max(0, top - round(120 / COARSE[0])) : top + 1]
    sides = (upper[:, 0], upper[:, -1], upper[:, :, 0], upper[:, :, -1])
    if max(float(side.mean()) for side in sides) > CUT_SHARE:
        return None
    long_mm = float(np.ptp(np.flatnonzero(upper.any(axis=(0, 2))))) * COARSE[1]
    across_mm = float(np.ptp(np.flatnonzero(upper.any(axis=(0, 1))))) * COARSE[2]
    fits = LONG_MM[0] <= long_mm <= LONG_MM[1] and ACROSS_MM[0] <= across_mm <= ACROSS_MM[1]
    return (top, long_mm) if fits else None


def _under_the_skin(grid: Coarse, skin: Bits, top: int, modality: Modality, empty: float) -> bool:
    """Whether bone (CT) or a dark skull or bright scalp (MR) lies where a head has it."""
    low = max(0, top - round(100 / COARSE[0]))
    inside = skin[low : top + 1]
    sides = [np.flatnonzero(inside.any(axis=(0, axis))) for axis in (2, 1)]
    rows, columns = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)  # nothing outside has a depth
    upper = grid.cut(low, top + 1, rows, columns)
    depth = np.empty(upper.shape)
    for plane, cut in zip(depth, inside[:, rows, columns], strict=True):
        plane[...] = ndimage.distance_transform_edt(np.pad(cut, 1))[1:-1, 1:-1] * COARSE[1]

    def layer(ends: tuple[float, float]) -> NDArray[np.float32]:
        return upper[(depth > ends[0]) & (depth <= ends[1])]

    shell, inner, scalp = layer(SHELL_MM), layer(INNER_MM), layer(SCALP_MM)
    if min(len(shell), len(inner), len(scalp)) < 50:
        return False
    if modality == "CT":
        wide = upper[(depth > SCALP_MM[0]) & (depth <= SHELL_MM[1])]
        inside = float(np.median(inner))
        return float((wide > BONE_HU).mean()) > BONE_SHARE and 0 <= inside <= 100
    brain = float(inner.mean())
    bins = [layer((a, a + 3)) for a in np.arange(SHELL_MM[0], SHELL_MM[1], 3.0)]
    skull = min(float(part.mean()) for part in bins if len(part))
    return skull < SKULL_DARK * brain or (float(scalp.mean()) > SCALP_BRIGHT * brain and empty < 0.3)


def _vertex_seen(skin: Bits, top: int) -> bool:
    """Whether the head closes towards the top instead of being cut by the field of view."""
    areas = np.array([np.count_nonzero(plane) for plane in skin])
    return bool(areas[top] < 0.6 * areas[: top + 1].max())


def _front(skin: Bits) -> NDArray[np.float64]:
    """Foremost skin of each slice near the middle, in mm from the first row; NaN without skin."""
    out = np.full(len(skin), np.nan)
    for number, plane in enumerate(skin):
        columns = np.flatnonzero(plane.any(axis=0))
        if len(columns):
            middle, reach = int(columns.mean()), round(15 / COARSE[2])
            rows = np.flatnonzero(plane[:, max(0, middle - reach) : middle + reach + 1].any(axis=1))
            out[number] = rows.max() * COARSE[1] if len(rows) else np.nan
    return out


def _has_face(front: NDArray[np.float64], top: int, brow: int, forehead: float, long_mm: float) -> bool:
    """Whether the front below the brow stands nearly as far forward as the forehead."""
    if brow == top:  # the top is cut off: what is seen may be any part of the head
        band = front[: top + 1]
    else:
        low, high = (top - round(part * long_mm / COARSE[0]) for part in (FACE_BAND[1], FACE_BAND[0]))
        band = front[max(0, low) : max(0, high)]
    near = np.count_nonzero(band >= forehead - STANDS_BACK_MM)
    return near * COARSE[0] >= FACE_TALL_MM


def _cut(shape: tuple[int, ...], spacing: tuple[float, float, float], brow: int, forehead: float) -> NDArray[np.bool_]:
    """All that lies in front of a plane leaning backwards from the brow, on the grid of the scan."""
    z = np.arange(shape[0]) * spacing[0]
    y = np.arange(shape[1]) * spacing[1]
    below = brow * COARSE[0] - z
    back = np.minimum(CUT_MM + CUT_SLOPE * below, CUT_DEEPEST_MM)
    plane = (below[:, None] > 0) & (y[None, :] > (forehead - back)[:, None])
    return np.broadcast_to(plane[:, :, None], shape)


def deface(voxels: NDArray[Any], mask: NDArray[np.bool_], fill: float) -> NDArray[Any]:
    """A copy of a scan with one value where the mask is true, within the range of its number type."""
    return blank(voxels.copy(), mask, fill)


def blank(out: NDArray[Any], mask: NDArray[np.bool_], fill: float) -> NDArray[Any]:
    """The same in place."""
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        fill = min(max(round(fill), limits.min), limits.max)
    out[mask] = fill
    return out
