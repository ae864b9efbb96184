"""`Volume`: one scan with its geometry, checked once when it is made.

Convention used everywhere in VoxScale: arrays are (z, y, x) with indices that
rise towards superior, anterior and right. Points in the world are (z, y, x) in
mm as well, i.e. (S, A, R), so the affine of an unrotated scan is diagonal and
positive.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from voxscale.errors import DataError, GeometryError

Modality = Literal["CT", "MR", "XR", "US", "OT"]
"""CT, MR, projection radiography (CR, DX, mammography), ultrasound, and everything else (photographs, microscopy)."""
MODALITIES: tuple[Modality, ...] = get_args(Modality)
Unit = Literal["HU", "arbitrary"]
Triple = tuple[float, float, float]
Affine = NDArray[np.float64]

SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two voxel axes that still counts as a right angle."""


def check_affine(affine: Affine) -> None:
    """Check that a 4x4 affine is a rotation times positive spacings.

    Raises:
        GeometryError: With reason `bad_affine` or `sheared`.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
        raise GeometryError("volume.affine must be a finite 4x4 matrix whose last row is 0 0 0 1", "bad_affine")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing < 1e-6).any():
        raise GeometryError("volume.affine must have three axes longer than 0 mm", "bad_affine")
    axes = affine[:3, :3] / spacing
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine > SHEAR_TOLERANCE:
        degrees = float(np.degrees(np.arcsin(min(cosine, 1.0))))
        raise GeometryError(
            f"volume.affine must have axes at right angles, not sheared by {degrees:.1f} degrees; "
            "resample the scan to an unsheared grid first",
            "sheared",
        )


@dataclass(frozen=True, slots=True)
class Volume:
    """One scan.

    Attributes:
        voxels: (z, y, x) in the stored number type; `slope * voxels + intercept` are the values. A 2D image has
            one slice; a colour image is (3, 1, y, x), red, green and blue first.
        affine: 4x4; maps (z, y, x, 1) indices to (S, A, R, 1) in mm, voxel centres.
        modality: See `Modality`.
        slope: Values per stored step.
        intercept: Value of a stored zero.
    """

    voxels: NDArray[Any]
    affine: Affine
    modality: Modality
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        """Check shape, number type and geometry.

        Raises:
            DataError: With reason `not_3d`, `bad_dtype` or `bad_modality`.
            GeometryError: With reason `bad_affine` or `sheared`.
        """
        colour = self.voxels.ndim == 4 and self.voxels.shape[:2] == (3, 1)
        if not (self.voxels.ndim == 3 or colour) or 0 in self.voxels.shape:
            raise DataError(f"volume.voxels must be 3D and not empty, not of shape {self.voxels.shape}", "not_3d")
        if self.voxels.dtype.kind not in "iuf":
            raise DataError(f"volume.voxels must be integers or floats, not {self.voxels.dtype}", "bad_dtype")
        if self.modality not in MODALITIES:
            raise DataError(
                f"volume.modality must be known, not {self.modality!r}; choose from {', '.join(MODALITIES)}",
                "bad_modality",
            )
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope != 0):
            raise DataError(f"volume.slope must be finite and not 0, not {self.slope}", "bad_scaling")
        check_affine(self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        z, y, x = self.voxels.shape[-3:]
        return z, y, x

    @property
    def channels(self) -> int:
        """Numbers per voxel: 1, or 3 for colour."""
        return 1 if self.voxels.ndim == 3 else self.voxels.shape[0]

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along z, y, x, in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def direction(self) -> NDArray[np.float64]:
        """3x3 rotation: column i is the unit vector of array axis i in (S, A, R)."""
        return self.affine[:3, :3] / np.asarray(self.spacing)

    @property
    def origin(self) -> Triple:
        """Centre of voxel (0, 0, 0) in (S, A, R) mm."""
        z, y, x = self.affine[:3, 3]
        return float(z), float(y), float(x)

    @property
    def unit(self) -> Unit:
        """Unit of the values: Hounsfield units for CT, arbitrary for MR."""
        return "HU" if self.modality == "CT" else "arbitrary"

    def values(self) -> NDArray[np.float32]:
        """The values as float32, (z, y, x), in `unit`."""
        return (self.voxels.astype(np.float64) * self.slope + self.intercept).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A segmentation on the grid of its scan.

    Attributes:
        voxels: (z, y, x) uint8; 0 is background.
        affine: As in `Volume`.
    """

    voxels: NDArray[np.uint8]
    affine: Affine

    def __post_init__(self) -> None:
        """Check shape, number type and geometry (raises as `Volume` does)."""
        if self.voxels.ndim != 3 or self.voxels.dtype != np.uint8:
            raise DataError(f"label.voxels must be 3D uint8, not {self.voxels.ndim}D {self.voxels.dtype}", "bad_label")
        check_affine(self.affine)


def to_canonical(voxels: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine]:
    """Reorder and flip array axes so that indices rise to S, A, R as nearly as can be.

    No value is interpolated. Each array axis goes to the world axis it is most
    nearly parallel to; ties are settled by the largest cosine first.

    Args:
        voxels: 3D array with axes in any order.
        affine: 4x4, maps its indices to (S, A, R) mm.

    Returns:
        The reordered view and its affine.
    """
    check = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    cosines = np.abs(check)
    source = [-1, -1, -1]  # source[world axis] = array axis
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(cosines)), (3, 3))
        source[int(world)] = int(axis)
        cosines[world, :] = -1
        cosines[:, axis] = -1
    out = np.transpose(voxels, source)
    moved = affine[:, [*source, 3]].copy()
    for axis in range(3):
        if moved[axis, axis] < 0:
            out = np.flip(out, axis)
            moved[:3, 3] += moved[:3, axis] * (out.shape[axis] - 1)
            moved[:3, axis] *= -1
    return out, moved


def ras_to_sar(affine: NDArray[Any]) -> Affine:
    """Turn a NIfTI affine ((i, j, k) to (R, A, S) mm) into ours ((k, j, i) to (S, A, R) mm)."""
    swap = np.eye(4)[[2, 1, 0, 3]]
    return swap @ np.asarray(affine, dtype=np.float64) @ swap


def lps_to_sar(affine: NDArray[Any]) -> Affine:
    """Turn a DICOM/ITK affine ((i, j, k) to (L, P, S) mm) into ours."""
    return ras_to_sar(np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64))
