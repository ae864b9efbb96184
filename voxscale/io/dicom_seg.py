"""DICOM Segmentation objects (binary, fractional, label map) on the grid of their image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels

from voxscale.errors import DataError
from voxscale.io.dicom_code import coded_name
from voxscale.io.dicom_header import plain_errors
from voxscale.io.storage import Raw
from voxscale.io.structures import GRID_TOLERANCE, LoadedLabel, Structure, StructureHeader, empty_note, paint
from voxscale.volume import Affine, lps_to_sar


def read_seg_header(path: Path) -> StructureHeader:
    """What a segmentation refers to and which structures it holds.

    Raises:
        DataError: With reason `unreadable`.
    """
    with plain_errors("dicom segmentation must have a readable header", "unreadable"):
        item = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        studies: list[Any] = list(item.get("StudiesContainingOtherReferencedInstancesSequence") or [])
        series = [each for place in (item, *studies) for each in place.get("ReferencedSeriesSequence") or []]
        uids = dict.fromkeys(str(each.SeriesInstanceUID) for each in series)
        found = [_structure(segment) for segment in item.SegmentSequence]
        # Number 0 of a label map is its background (PS3.3 C.8.20.2.3.3).
        structures = tuple(each for each in found if each.number > 0)
        return StructureHeader(tuple(uids), str(item.get("FrameOfReferenceUID") or ""), structures)


def _structure(segment: Dataset) -> Structure:
    code = coded_name(segment.get("SegmentedPropertyTypeCodeSequence"))
    return Structure(int(segment.SegmentNumber), code, str(segment.get("SegmentLabel") or ""))


def load_seg(path: Path, image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    """Read a segmentation onto the grid of its image.

    Frames are placed by their position and orientation, so their order does
    not matter; slices without a frame are background. One frame is decoded at
    a time.

    Args:
        path: The file.
        image: The image it was drawn on.
        values: Class of each segment, by segment number; others are left out.

    Raises:
        DataError: With reason `label_grid` if a frame does not lie on the image's grid, `unreadable` or
            `undecodable`.
    """
    with plain_errors("dicom segmentation must decode", "undecodable"):
        return _paint(pydicom.dcmread(path, force=True), image, values)


def _paint(item: Dataset, image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    label = LoadedLabel(np.zeros(image.voxels.shape[-3:], dtype=np.uint8))
    kind = str(item.get("SegmentationType") or "BINARY").upper()
    frames: list[Any] = list(item.PerFrameFunctionalGroupsSequence)
    if len(frames) != int(item.NumberOfFrames):
        text = f"dicom segmentation must describe all of its {int(item.NumberOfFrames)} frames, not {len(frames)}"
        raise DataError(text, "undecodable")
    shared: Any = item.SharedFunctionalGroupsSequence[0]
    numbers = [0 if kind == "LABELMAP" else _segment(frame, shared) for frame in frames]
    size = (int(item.Rows), int(item.Columns))
    placer, half, drawn = _Placer(shared, image.affine, label.voxels.shape, size), 0.0, set[int]()
    if kind == "FRACTIONAL":
        half = float(item.MaximumFractionalValue) / 2
    order = sorted(range(len(frames)), key=lambda place: numbers[place])  # the later number has the voxel
    for place, pixels in zip(order, _pixels(item, order), strict=True):
        slot = placer.find(frames[place])
        found = (int(n) for n in np.unique(pixels) if n) if kind == "LABELMAP" else (numbers[place],)
        for number in found:
            match kind:
                case "LABELMAP":
                    mask = pixels == number
                case "FRACTIONAL":
                    mask = pixels >= half
                case _:
                    mask = pixels > 0
            if number in values and mask.any():
                drawn.add(number)
                paint(label, slot.turn(mask), values[number], slot.where)
    told = ("label: fractions of at least one half count as inside",) if kind == "FRACTIONAL" else ()
    return LoadedLabel(label.voxels, label.overlaps, (*told, *empty_note(values, drawn)))


def _pixels(item: Dataset, order: list[int]) -> Iterator[NDArray[Any]]:
    """Frames in the given order, (rows, columns) each."""
    # pydicom 3.0.2 cuts bits off packed frames that do not end with a byte when it reads them one by one.
    if int(item.BitsAllocated) == 1 and (int(item.Rows) * int(item.Columns)) % 8:
        every = np.asarray(item.pixel_array).reshape(-1, int(item.Rows), int(item.Columns))
        yield from (every[place] for place in order)
    else:
        yield from iter_pixels(item, raw=True, indices=None if order == sorted(order) else order)


def _segment(frame: Dataset, shared: Dataset) -> int:
    for place in (frame, shared):
        inside: Any = place.get("SegmentIdentificationSequence")
        if inside:
            return int(inside[0].ReferencedSegmentNumber)
    raise DataError("dicom segmentation must name the segment of every frame", "unreadable")


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a frame lies in the image.

    Attributes:
        where: A plane of the image's array.
        flips: Steps along rows and columns, 1 or -1.
        swapped: Whether the frame's columns come first in the plane.
    """

    where: tuple[slice | int, ...]
    flips: tuple[int, int]
    swapped: bool

    def turn(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A frame's mask as it lies in the plane."""
        turned = mask[:: self.flips[0], :: self.flips[1]]
        return turned.T if self.swapped else turned


@dataclass(frozen=True, slots=True)
class _Placer:
    """Finds the plane of each frame.

    Attributes:
        shared: What holds for all frames.
        affine: Of the image.
        shape: Of the image.
        size: Rows and columns of a frame.
    """

    shared: Dataset
    affine: Affine
    shape: tuple[int, ...]
    size: tuple[int, int]

    def find(self, frame: Dataset) -> _Slot:
        """The place of a frame.

        Raises:
            DataError: With reason `label_grid` if any of its pixels lies off the image's voxels.
        """
        turn = self._numbers(frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        sizes = self._numbers(frame, "PixelMeasuresSequence", "PixelSpacing", 2)
        own = np.eye(4)
        own[:3, 0], own[:3, 1] = turn[3:] * sizes[0], turn[:3] * sizes[1]  # row index, then column index
        own[:3, 2] = np.cross(turn[:3], turn[3:])
        own[:3, 3] = self._numbers(frame, "PlanePositionSequence", "ImagePositionPatient", 3)
        steps = (np.linalg.inv(self.affine) @ lps_to_sar_points(own))[:3, [0, 1, 3]]
        last = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]) * [self.size[0] - 1, self.size[1] - 1, 1]
        whole = np.rint(np.clip(np.nan_to_num(steps), -1e9, 1e9))
        near = bool((np.abs((steps - whole) @ last.T) <= GRID_TOLERANCE).all())  # False where a number is NaN
        row, column = (int(np.abs(whole[:, n]).argmax()) for n in (0, 1))
        straight = np.abs(whole[:, :2]).sum() == 2 and row != column and bool(whole[row, 0] and whole[column, 1])
        ends = whole @ last.T
        inside = bool((ends >= 0).all() and (ends < np.asarray(self.shape)[:, None]).all())
        if not (near and straight and inside):
            raise DataError("dicom segmentation must lie on the grid of its image", "label_grid")
        low, high = ends.min(axis=1).astype(int).tolist(), ends.max(axis=1).astype(int).tolist()
        where = tuple(slice(low[n], high[n] + 1) if n in (row, column) else low[n] for n in range(3))
        return _Slot(where, (int(whole[row, 0]), int(whole[column, 1])), row > column)

    def _numbers(self, frame: Dataset, macro: str, tag: str, count: int) -> NDArray[np.float64]:
        for place in (frame, self.shared):
            inside: Any = place.get(macro)
            if inside and tag in inside[0]:
                found = np.asarray([float(part) for part in inside[0][tag].value])
                if found.shape == (count,) and np.isfinite(found).all():
                    return found
        raise DataError(f"dicom segmentation must give {tag} for every frame", "label_grid")


def lps_to_sar_points(matrix: NDArray[np.float64]) -> Affine:
    """A matrix whose result is a point in (L, P, S) mm, turned into one whose result is in (S, A, R) mm."""
    swap = lps_to_sar(np.eye(4))[:3, :3]  # diagonal signs in (S, A, R) order
    out = np.eye(4)
    out[:3] = swap @ matrix[[2, 1, 0]]
    return out
