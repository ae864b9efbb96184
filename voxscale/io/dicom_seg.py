"""DICOM Segmentation objects (binary, fractional, label map) on the grid of their image."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from voxscale.errors import DataError
from voxscale.io.storage import Raw
from voxscale.io.structures import LoadedLabel, Structure, StructureHeader, paint
from voxscale.volume import Affine, lps_to_sar

GRID_TOLERANCE = 0.1
"""A segment's voxel may lie off the image's voxel by this share of a voxel."""


def read_seg_header(path: Path) -> StructureHeader:
    """What a segmentation refers to and which structures it holds.

    Raises:
        DataError: With reason `unreadable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            item = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            series = tuple(str(each.SeriesInstanceUID) for each in item.get("ReferencedSeriesSequence") or [])
            found = tuple(_structure(segment) for segment in item.SegmentSequence)
            return StructureHeader(series, str(item.get("FrameOfReferenceUID") or ""), found)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes pydicom raise
        text = f"dicom segmentation must have a readable header, not fail with {type(error).__name__}"
        raise DataError(text, "unreadable") from None


def _structure(segment: Dataset) -> Structure:
    meaning = None
    kinds: Any = segment.get("SegmentedPropertyTypeCodeSequence")
    if kinds:
        meaning = public_meaning(
            str(kinds[0].get("CodeValue") or ""), str(kinds[0].get("CodingSchemeDesignator") or "")
        )
    return Structure(int(segment.SegmentNumber), meaning, str(segment.get("SegmentLabel") or ""))


def public_meaning(value: str, scheme: str) -> str | None:
    """Meaning of a code in the dictionaries that come with pydicom; a file's own words for it are not used."""
    for known in {scheme, "SCT"} if scheme in ("SCT", "SRT", "99SDM") else {scheme}:
        try:
            wanted = Code(value, scheme, "")
            collection: Any = getattr(codes, known)
            for name in dir(collection):
                found: Any = getattr(collection, name)
                if isinstance(found, Code) and found == wanted:
                    return str(found.meaning).lower()
        except (AttributeError, ValueError, KeyError):
            continue
    return None


def load_seg(path: Path, image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    """Read a segmentation onto the grid of its image.

    Args:
        path: The file.
        image: The image it was drawn on.
        values: Class of each segment, by segment number; others are left out.

    Raises:
        DataError: With reason `label_grid` if a frame does not lie on the image's grid, `unreadable` or
            `undecodable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            item = pydicom.dcmread(path, force=True)
            pixels = np.asarray(item.pixel_array)
            pixels = pixels[None] if pixels.ndim == 2 else pixels
            return _paint(item, pixels, image, values)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes pydicom raise
        text = f"dicom segmentation must decode, not fail with {type(error).__name__}"
        raise DataError(text, "undecodable") from None


def _paint(item: Dataset, pixels: NDArray[Any], image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    shape = image.voxels.shape[-3:]
    label = LoadedLabel(np.zeros(shape, dtype=np.uint8))
    notes: list[str] = []
    kind = str(item.get("SegmentationType") or "BINARY").upper()
    if kind == "FRACTIONAL":
        pixels = pixels >= float(item.MaximumFractionalValue) / 2
        notes.append("label: fractions of at least one half count as inside")
    shared: Any = item.SharedFunctionalGroupsSequence[0]
    frames: list[Any] = list(item.PerFrameFunctionalGroupsSequence)
    if len(frames) != len(pixels):
        raise DataError(f"dicom segmentation must have {len(frames)} frames, not {len(pixels)}", "undecodable")
    numbers = [_segment(frame, shared, kind) for frame in frames]
    for place in sorted(range(len(frames)), key=lambda i: numbers[i]):
        index = _to_image(frames[place], shared, image.affine, shape, pixels.shape[1:])
        if kind == "LABELMAP":
            for number in (int(n) for n in np.unique(pixels[place]) if n):
                _put(label, index, pixels[place] == number, values.get(number))
        else:
            _put(label, index, pixels[place] > 0, values.get(numbers[place]))
    return LoadedLabel(label.voxels, label.overlaps, tuple(notes))


def _segment(frame: Dataset, shared: Dataset, kind: str) -> int:
    if kind == "LABELMAP":
        return 0
    for place in (frame, shared):
        inside: Any = place.get("SegmentIdentificationSequence")
        if inside:
            return int(inside[0].ReferencedSegmentNumber)
    raise DataError("dicom segmentation must name the segment of every frame", "unreadable")


def _to_image(frame: Dataset, shared: Dataset, affine: Affine, shape: Any, size: tuple[int, ...]) -> NDArray[np.int64]:
    """Image index (z, y, x) of every pixel of a frame, (rows, columns, 3).

    Raises:
        DataError: With reason `label_grid`.
    """

    def find(macro: str, tag: str) -> NDArray[np.float64]:
        for place in (frame, shared):
            inside: Any = place.get(macro)
            if inside and tag in inside[0]:
                return np.asarray([float(part) for part in inside[0][tag].value])
        raise DataError(f"dicom segmentation must give {tag} for every frame", "label_grid")

    turn = find("PlaneOrientationSequence", "ImageOrientationPatient")
    sizes = find("PixelMeasuresSequence", "PixelSpacing")
    own = np.eye(4)
    own[:3, 0], own[:3, 1] = turn[3:] * sizes[0], turn[:3] * sizes[1]  # row index, then column index
    own[:3, 2], own[:3, 3] = np.cross(turn[:3], turn[3:]), find("PlanePositionSequence", "ImagePositionPatient")
    world = lps_to_sar_points(own)
    step = np.linalg.inv(affine) @ world
    rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    exact = rows[..., None] * step[:3, 0] + columns[..., None] * step[:3, 1] + step[:3, 3]
    index = np.rint(exact).astype(np.int64)
    if np.abs(exact - index).max() > GRID_TOLERANCE or (index < 0).any() or (index >= np.asarray(shape)).any():
        raise DataError("dicom segmentation must lie on the grid of its image", "label_grid")
    return index


def lps_to_sar_points(matrix: NDArray[np.float64]) -> Affine:
    """A matrix whose result is a point in (L, P, S) mm, turned into one whose result is in (S, A, R) mm."""
    swap = lps_to_sar(np.eye(4))[:3, :3]  # diagonal signs in (S, A, R) order
    out = np.eye(4)
    out[:3] = swap @ matrix[[2, 1, 0]]
    return out


def _put(label: LoadedLabel, index: NDArray[np.int64], mask: NDArray[np.bool_], value: int | None) -> None:
    """Write one frame of one segment."""
    if value is None or not mask.any():
        return
    z, y, x = index[mask].T
    whole = np.zeros(label.voxels.shape, dtype=bool)
    low, high = int(z.min()), int(z.max()) + 1
    whole[z, y, x] = True
    paint(label, whole[low:high], value, (slice(low, high),))
