"""DICOM series of single-frame CT or MR images, stacked along their own slice normal."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian

from voxscale.errors import DataError, GeometryError
from voxscale.io.storage import Raw, make_raw
from voxscale.volume import Affine, Modality, Volume, lps_to_sar

MODALITY_OF_CLASS: dict[str, Modality] = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
}
"""Storage classes that are read: one slice per file."""

SLICE_TOLERANCE_MM = 0.01
SLICE_TOLERANCE = 0.01
"""A slice may lie off its place on the regular grid by 0.01 mm or by 1 % of the spacing, whichever is more:
room for positions written with two decimals, and far below what a network could see."""

HEADER_TAGS = ["SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"]


def read_headers(paths: Sequence[str]) -> list[dict[str, str] | None]:
    """Read what sorts files into series, without pixels.

    Args:
        paths: DICOM files, with or without the 128-byte preamble.

    Returns:
        Per file None if it is not DICOM, else its `HEADER_TAGS` (empty where
        absent) and `kind`: `image`, or `other` for storage classes that hold no image.
    """
    return [_read_header(path) for path in paths]


def _read_header(path: str) -> dict[str, str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(HEADER_TAGS))
            row = {tag: str(found.get(tag) or "") for tag in HEADER_TAGS} | {"SOPClassUID": _class_uid(found)}
    except MemoryError:
        raise
    except Exception:  # whatever a damaged file makes pydicom raise
        return None
    if not any(row.values()):
        return None
    known = row["SOPClassUID"]
    row["kind"] = "image" if not known or "Image Storage" in UID(known).name else "other"
    return row


def _class_uid(item: Dataset) -> str:
    """Storage class, from the file's preface where the data set itself leaves it empty."""
    meta: Any = getattr(item, "file_meta", None)
    return str(item.get("SOPClassUID") or (meta and meta.get("MediaStorageSOPClassUID")) or "")


def read_series(paths: Sequence[Path]) -> Volume:
    """Read one series; see `load_series`. The modality is that of the storage class."""
    raw, modality = load_series(paths)
    return raw.volume(modality)


def load_series(paths: Sequence[Path]) -> tuple[Raw, Modality]:
    """Read and check the files of one series, in any order.

    Args:
        paths: One file per slice.

    Raises:
        DataError: With reason `unreadable`, `not_an_image`, `bad_modality`,
            `multiframe`, `burned_in`, `bad_dtype`, `mixed_series`,
            `missing_geometry`, `single_slice`, `duplicate_slices`,
            `uneven_slices`, `bad_scaling`, `truncated` or `undecodable`.
        GeometryError: With reason `bad_affine`, or `sheared` for a tilted gantry.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes header values in its warnings
        slices = [_read_file(path) for path in paths]
        modalities: list[Modality] = [_check_class(item) for item in slices]
        _same("the same storage class", [_class_uid(item) for item in slices])
        _same("one SeriesInstanceUID", [str(item.get("SeriesInstanceUID") or "") for item in slices])
        _same("one image size", [(int(item.Rows), int(item.Columns)) for item in slices])
        order, affine = _geometry(slices)
        slices = [slices[index] for index in order]
        scales = [_rescale(item) for item in slices]
        frames = [_decode(item) for item in slices]
    if len(set(scales)) == 1:
        return make_raw(np.stack(frames), affine, *scales[0]), modalities[0]
    scaled = [frame.astype(np.float64) * slope + start for frame, (slope, start) in zip(frames, scales, strict=True)]
    return make_raw(np.stack(scaled), affine), modalities[0]


def _same(what: str, found: Sequence[object]) -> None:
    if len(set(found)) != 1:
        raise DataError(f"dicom series must have {what}, not {len(set(found))} different ones", "mixed_series")


def _read_file(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path, force=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes pydicom raise
        raise DataError(f"dicom file must be readable, not fail with {type(error).__name__}", "unreadable") from None


def _check_class(item: Dataset) -> Modality:
    """The modality of one file, after checks that need neither geometry nor pixels."""
    known = _class_uid(item)
    name = UID(known).name
    if not known:
        raise DataError("dicom file must name its storage class", "unreadable")
    if "Image Storage" not in name:
        raise DataError(f"dicom file must be an image, not {_class_name(known)}", "not_an_image")
    mosaic = "MOSAIC" in [str(part).upper() for part in item.get("ImageType") or []]
    if mosaic or "Enhanced" in name or int(item.get("NumberOfFrames") or 1) > 1:
        raise DataError("dicom file must hold one slice, not several frames or a mosaic", "multiframe")
    if known not in MODALITY_OF_CLASS:
        raise DataError(f"dicom file must be CT or MR Image Storage, not {_class_name(known)}", "bad_modality")
    if str(item.get("BurnedInAnnotation") or "").upper() == "YES":
        raise DataError("dicom image must not have text burned in, which may name the patient", "burned_in")
    if "Rows" not in item or "Columns" not in item:
        raise DataError("dicom image must have Rows and Columns", "not_an_image")
    if int(item.get("SamplesPerPixel") or 1) != 1:
        raise DataError("dicom image must have one sample per pixel, not colour", "bad_dtype")
    return MODALITY_OF_CLASS[known]


def _class_name(known: str) -> str:
    """Public name of a storage class; a private or false UID is not repeated."""
    name = UID(known).name
    return name if name != known else "an unknown storage class"


def _numbers(item: Dataset, tag: str, count: int) -> NDArray[np.float64]:
    """A numeric header field, (count,) float64."""
    try:
        found = np.asarray([float(part) for part in item[tag].value], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise DataError(f"dicom.{tag} must be {count} numbers in every slice", "missing_geometry")
    return found


def _geometry(slices: Sequence[Dataset]) -> tuple[list[int], Affine]:
    """Order of the slices along their normal, and the affine of the stack."""
    corners = np.stack([_numbers(item, "ImagePositionPatient", 3) for item in slices])
    turns = np.stack([_numbers(item, "ImageOrientationPatient", 6) for item in slices])
    sizes = np.stack([_numbers(item, "PixelSpacing", 2) for item in slices])
    if not (np.allclose(turns, turns[0], atol=1e-4) and np.allclose(sizes, sizes[0], rtol=1e-4)):
        raise DataError("dicom series must have one orientation and one pixel spacing", "mixed_series")
    right, down = turns[0, :3], turns[0, 3:]
    if (sizes[0] <= 0).any() or not np.allclose([right @ right, down @ down, right @ down], [1, 1, 0], atol=1e-3):
        raise GeometryError("dicom orientation must be two unit vectors at right angles", "bad_affine")
    if len(slices) < 2:
        raise DataError("dicom series must have at least 2 slices to know their spacing", "single_slice")
    along = corners @ np.cross(right, down)
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    if (gaps < max(1e-3, SLICE_TOLERANCE * float(np.median(gaps)))).any():
        raise DataError(
            "dicom series must have one slice per position, not several phases, echoes or copies", "duplicate_slices"
        )
    first, last = corners[order[0]], corners[order[-1]]
    step = (last - first) / (len(slices) - 1)
    off = corners[order] - (first + np.arange(len(slices))[:, None] * step)
    spacing = float(np.median(gaps))
    error = max(float(np.abs(gaps - spacing).max()), float(np.abs(off).max()))
    if error > max(SLICE_TOLERANCE_MM, SLICE_TOLERANCE * spacing):
        raise DataError(f"dicom slices must be evenly spaced, not off by {error:.3g} mm", "uneven_slices")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = right * sizes[0, 1], down * sizes[0, 0]
    affine[:3, 2], affine[:3, 3] = step, first
    return [int(index) for index in order], lps_to_sar(affine)


def _rescale(item: Dataset) -> tuple[float, float]:
    """Slope and intercept of one slice."""
    if item.get("ModalityLUTSequence"):
        raise DataError("dicom image must be scaled by slope and intercept, not by a table", "bad_scaling")
    try:
        return float(item.get("RescaleSlope", 1.0)), float(item.get("RescaleIntercept", 0.0))
    except (TypeError, ValueError):
        raise DataError("dicom.RescaleSlope and RescaleIntercept must be numbers", "bad_scaling") from None


def _decode(item: Dataset) -> NDArray[Any]:
    """The stored integers of one slice, (rows, columns)."""
    if "PixelData" not in item:
        raise DataError("dicom image must hold pixel data", "truncated")
    meta: Any = getattr(item, "file_meta", None)
    syntax = UID(str(getattr(meta, "TransferSyntaxUID", "") or ImplicitVRLittleEndian))
    if meta is None or "TransferSyntaxUID" not in meta:
        item.ensure_file_meta()
        item.file_meta.TransferSyntaxUID = syntax  # DICOM's default where none is given
    expected = int(item.Rows) * int(item.Columns) * int(item.get("BitsAllocated") or 0) // 8
    if not syntax.is_compressed and len(item.PixelData) < expected:
        raise DataError(f"dicom.PixelData must have {expected} bytes, not {len(item.PixelData)}", "truncated")
    try:
        frame = np.asarray(item.pixel_array)
        bits, signed = int(item.BitsStored), int(item.PixelRepresentation) == 1
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged streams
        name = syntax.name if syntax.name != syntax else "unknown transfer syntax"
        message = f"dicom pixel data ({name}) must decode, not fail with {type(error).__name__}"
        raise DataError(message, "undecodable") from None
    if frame.ndim != 2 or frame.dtype.kind not in "iu":
        raise DataError(f"dicom pixels must be one 2D integer image, not {frame.ndim}D {frame.dtype}", "bad_dtype")
    return _stored_bits(frame, bits, signed)


def _stored_bits(frame: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Keep the low `bits` of each pixel; old files hide overlays in the others."""
    spare = frame.dtype.itemsize * 8 - bits
    if spare <= 0 or bits <= 0:
        return frame
    kind = np.dtype(f"{'i' if signed else 'u'}{frame.dtype.itemsize}")
    return np.right_shift(np.left_shift(frame.astype(kind), spare), spare)
