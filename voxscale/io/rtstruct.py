"""RTSTRUCT contours as a label map on the grid of their image."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from voxscale.errors import DataError
from voxscale.io.dicom_seg import lps_to_sar_points
from voxscale.io.storage import Raw
from voxscale.io.structures import LoadedLabel, Structure, StructureHeader, paint

OFF_SLICE = 0.5
"""A contour may lie off its slice by this share of the slice spacing."""


def read_rtstruct_header(path: Path) -> StructureHeader:
    """What a structure set refers to and which structures it holds.

    Raises:
        DataError: With reason `unreadable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            item = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            frames: list[Any] = list(item.get("ReferencedFrameOfReferenceSequence") or [])
            studies = [s for frame in frames for s in frame.get("RTReferencedStudySequence") or []]
            series = [s for study in studies for s in study.get("RTReferencedSeriesSequence") or []]
            rois = tuple(
                Structure(int(r.ROINumber), None, str(r.get("ROIName") or "")) for r in item.StructureSetROISequence
            )
            frame = str(frames[0].get("FrameOfReferenceUID") or "") if frames else ""
            return StructureHeader(tuple(str(s.SeriesInstanceUID) for s in series), frame, rois)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes pydicom raise
        text = f"dicom structure set must have a readable header, not fail with {type(error).__name__}"
        raise DataError(text, "unreadable") from None


def load_rtstruct(path: Path, image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    """Rasterise the closed contours of a structure set on the grid of its image.

    A voxel belongs to a structure if its centre lies inside the contours of
    its slice; contours inside one another make holes (exclusive or).

    Args:
        path: The file.
        image: The image it was drawn on; contours lie in its slices.
        values: Class of each structure, by ROINumber; others are left out.

    Raises:
        DataError: With reason `label_grid` if a contour does not lie in a slice of the image, or `unreadable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            item = pydicom.dcmread(path, force=True)
            contours = {int(each.ReferencedROINumber): each for each in item.get("ROIContourSequence") or []}
            label, skipped = LoadedLabel(np.zeros(image.voxels.shape[-3:], dtype=np.uint8)), 0
            for number in sorted(values):
                found = list(contours[number].get("ContourSequence") or []) if number in contours else []
                closed = [each for each in found if str(each.ContourGeometricType) == "CLOSED_PLANAR"]
                skipped += len(found) - len(closed)
                _draw(label, [_points(each) for each in closed], image, values[number])
    except (DataError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes pydicom raise
        text = f"dicom structure set must be readable, not fail with {type(error).__name__}"
        raise DataError(text, "unreadable") from None
    notes = (f"label: {skipped} points and open contours are left out",) if skipped else ()
    return LoadedLabel(label.voxels, label.overlaps, notes)


def _points(contour: Dataset) -> NDArray[np.float64]:
    """Corners of a contour, (n, 3) in (L, P, S) mm."""
    return np.asarray([float(part) for part in contour.ContourData], dtype=np.float64).reshape(-1, 3)


def _draw(label: LoadedLabel, contours: list[NDArray[np.float64]], image: Raw, value: int) -> None:
    """Rasterise one structure."""
    to_index = np.linalg.inv(image.affine)
    swap = lps_to_sar_points(np.eye(4))[:3, :3]
    corners = [(points @ swap.T) @ to_index[:3, :3].T + to_index[:3, 3] for points in contours]
    corners = [points for points in corners if len(points) >= 3]
    if not corners:
        return
    axis = _slice_axis(corners)
    slices: dict[int, NDArray[np.bool_]] = {}
    others = [a for a in range(3) if a != axis]
    shape = label.voxels.shape
    for points in corners:
        place = float(points[:, axis].mean())
        number = round(place)
        if np.ptp(points[:, axis]) > OFF_SLICE or abs(place - number) > OFF_SLICE or not 0 <= number < shape[axis]:
            raise DataError("dicom contours must lie in slices of their image", "label_grid")
        inside = _inside(points[:, others], (shape[others[0]], shape[others[1]]))
        slices[number] = slices.get(number, np.zeros_like(inside)) ^ inside
    whole = np.zeros(shape, dtype=bool)
    moved = np.moveaxis(whole, axis, 0)
    for number, mask in slices.items():
        moved[number] = mask
    paint(label, whole, value)


def _slice_axis(corners: list[NDArray[np.float64]]) -> int:
    """The array axis along which every contour is flat."""
    spread = np.max([np.ptp(points, axis=0) for points in corners], axis=0)
    return int(np.argmin(spread))


def _inside(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxel centres inside a polygon whose corners are (first, second) indices."""
    out = np.zeros(shape, dtype=bool)
    low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, shape)
    if (low >= high).any():
        return out
    first, second = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    centres = np.stack([first.ravel(), second.ravel()], axis=1)
    inside = Polygon(np.vstack([points, points[:1]])).contains_points(centres)
    out[low[0] : high[0], low[1] : high[1]] = inside.reshape(first.shape)
    return out
