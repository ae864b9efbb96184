"""RTSTRUCT contours as a label map on the grid of their image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from voxscale.errors import DataError
from voxscale.io.dicom_code import coded_name
from voxscale.io.dicom_header import plain_errors
from voxscale.io.dicom_seg import lps_to_sar_points
from voxscale.io.storage import Raw
from voxscale.io.structures import LoadedLabel, Structure, StructureHeader, empty_note, paint

OFF_SLICE = 0.5
"""A contour may lie off its slice by this share of the slice spacing."""

SAME_PLANE = 0.01
"""Contours this share of the slice spacing apart lie in one plane."""

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Types of contours that enclose an area (DICOM PS3.3, C.8.8.6.1)."""

SNAP = 6
"""Decimals of a voxel to which corners are rounded, so that a corner meant for a voxel's centre lies on it."""


def read_rtstruct_header(path: Path) -> StructureHeader:
    """What a structure set refers to and which structures it holds.

    Raises:
        DataError: With reason `unreadable`.
    """
    with plain_errors("dicom structure set must have a readable header", "unreadable"):
        item = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        frames: list[Any] = list(item.get("ReferencedFrameOfReferenceSequence") or [])
        studies = [s for frame in frames for s in frame.get("RTReferencedStudySequence") or []]
        series = [s for study in studies for s in study.get("RTReferencedSeriesSequence") or []]
        uids = dict.fromkeys(str(each.SeriesInstanceUID) for each in series)
        kinds: dict[int, str | None] = {}
        for seen in item.get("RTROIObservationsSequence") or []:
            number, code = int(seen.ReferencedROINumber), coded_name(seen.get("RTROIIdentificationCodeSequence"))
            kinds[number] = kinds.get(number) or code
        rois: list[Any] = list(item.StructureSetROISequence)
        numbered = [(int(roi.ROINumber), str(roi.get("ROIName") or "")) for roi in rois]
        found = tuple(Structure(number, kinds.get(number), name) for number, name in numbered)
        frame = str(frames[0].get("FrameOfReferenceUID") or "") if frames else ""
        return StructureHeader(tuple(uids), frame, found)


@dataclass(slots=True)
class _Counts:
    """What is told about a structure set once it is drawn."""

    skipped: int = 0
    between: int = 0
    gaps: int = 0
    cut: int = 0

    def notes(self) -> tuple[str, ...]:
        """One sentence for each thing that happened."""
        told = {
            "points, open and too short contours are left out": self.skipped,
            "planes of contours lie beside a nearer one of the same slice and are left out": self.between,
            "slices between contours of a structure have none and stay empty": self.gaps,
            "contours reach beyond the image and are cut": self.cut,
        }
        return tuple(f"label: {count} {what}" for what, count in told.items() if count)


def load_rtstruct(path: Path, image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    """Rasterise the closed contours of a structure set on the grid of its image.

    A voxel belongs to a structure if its centre lies inside the contours of
    its slice; of a centre on the border, the lower ends along both axes count
    as inside and the upper ends as outside, so that structures that share a
    border share no voxel. Where contours of a structure lie inside one
    another, or a contour is led into itself (keyhole), the inner area is a
    hole (exclusive or). A contour between two slices belongs to the nearer
    one; of several planes of contours, each slice takes the nearest.

    Args:
        path: The file.
        image: The image it was drawn on; contours lie in its slices.
        values: Class of each structure, by ROINumber; others are left out.

    Raises:
        DataError: With reason `label_grid` if a contour does not lie in a slice of the image, or `unreadable`.
    """
    label, counts, drawn = LoadedLabel(np.zeros(image.voxels.shape[-3:], dtype=np.uint8)), _Counts(), set[int]()
    with plain_errors("dicom structure set must be readable", "unreadable"):
        item = pydicom.dcmread(path, force=True)
        contours: dict[int, list[Dataset]] = {}
        for each in item.get("ROIContourSequence") or []:
            contours.setdefault(int(each.ReferencedROINumber), []).extend(each.get("ContourSequence") or [])
        for number in sorted(values):
            found = contours.get(number, [])
            closed = [_points(each) for each in found if str(each.ContourGeometricType) in CLOSED]
            closed = [points for points in closed if len(points) >= 3]
            counts.skipped += len(found) - len(closed)
            if closed and _draw(label, closed, image, values[number], counts):
                drawn.add(number)
    return LoadedLabel(label.voxels, label.overlaps, (*counts.notes(), *empty_note(values, drawn)))


def _points(contour: Dataset) -> NDArray[np.float64]:
    """Corners of a contour, (n, 3) in (L, P, S) mm."""
    return np.asarray([float(part) for part in contour.ContourData], dtype=np.float64).reshape(-1, 3)


def _draw(label: LoadedLabel, contours: list[NDArray[np.float64]], image: Raw, value: int, counts: _Counts) -> bool:
    """Rasterise one structure; returns whether it has a voxel."""
    to_index = np.linalg.inv(image.affine)
    swap = lps_to_sar_points(np.eye(4))[:3, :3]
    corners = [(points @ swap.T) @ to_index[:3, :3].T + to_index[:3, 3] for points in contours]
    axis = _slice_axis(corners)
    others = [a for a in range(3) if a != axis]
    shape = label.voxels.shape
    ends = np.array([shape[other] for other in others])
    for points in corners:
        place, flat = points[:, axis].mean(), points[:, others]
        level = np.ptp(points[:, axis]) <= OFF_SLICE and -OFF_SLICE <= place <= shape[axis] - 1 + OFF_SLICE
        if not level or not ((flat.max(axis=0) >= -0.5) & (flat.min(axis=0) <= ends - 0.5)).all():
            raise DataError("dicom contours must lie in slices of their image", "label_grid")
        counts.cut += bool((flat.min(axis=0) < -0.5).any() or (flat.max(axis=0) > ends - 0.5).any())
    planes = _planes(corners, axis, shape[axis], counts)
    whole = np.zeros(shape, dtype=bool)
    moved = np.moveaxis(whole, axis, 0)
    for number, plane in planes.items():
        moved[number] = fill([points[:, others] for points in plane], (int(ends[0]), int(ends[1])))
    low, high = min(planes), max(planes) + 1
    counts.gaps += high - low - len(planes)
    where = (*(slice(None),) * axis, slice(low, high))
    paint(label, whole[where], value, where)
    return bool(whole.any())


def _planes(
    corners: list[NDArray[np.float64]], axis: int, slices: int, counts: _Counts
) -> dict[int, list[NDArray[np.float64]]]:
    """The contours of each slice: those of the plane that lies nearest to it."""
    order = sorted(corners, key=lambda points: float(points[:, axis].mean()))
    found: dict[int, list[tuple[float, list[NDArray[np.float64]]]]] = {}
    last = -np.inf
    for points in order:
        place = float(points[:, axis].mean())
        number = min(max(int(np.floor(place + 0.5)), 0), slices - 1)
        several = found.setdefault(number, [])
        if not several or place - last > SAME_PLANE:
            several.append((abs(place - number), []))
        several[-1][1].append(points)
        last = place
    counts.between += sum(len(several) - 1 for several in found.values())
    return {number: min(several, key=lambda plane: plane[0])[1] for number, several in found.items()}


def _slice_axis(corners: list[NDArray[np.float64]]) -> int:
    """The array axis along which every contour is flat."""
    spread = np.max([np.ptp(points, axis=0) for points in corners], axis=0)
    return int(np.argmin(spread))


def fill(polygons: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Grid points inside an odd number of polygons.

    Each edge is cut with the rows it spans (lower end included, upper end
    not); every point of a row at or beyond a cut changes sides (even-odd
    rule; Foley et al., Computer Graphics, 2nd edition, section 3.6).

    Args:
        polygons: Corners, (n, 2) as (first, second) indices; the last joins the first.
        shape: Points along both axes.
    """
    start = np.round(np.concatenate(polygons), SNAP)
    end = np.round(np.concatenate([np.roll(points, -1, axis=0) for points in polygons]), SNAP)
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.clip(np.ceil(low), 0, shape[0]).astype(np.int64)
    rows = np.clip(np.ceil(high), 0, shape[0]).astype(np.int64) - first
    edge = np.repeat(np.arange(len(start)), rows)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows)
    along = (row - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
    cut = np.round(start[edge, 1] + along * (end[edge, 1] - start[edge, 1]), SNAP)
    column = np.clip(np.ceil(cut), 0, shape[1]).astype(np.int64)
    flips = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    np.add.at(flips, (row, column), 1)
    return np.cumsum(flips[:, : shape[1]], axis=1) % 2 == 1
