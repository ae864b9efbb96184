"""What sorts DICOM files before any pixel is read."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from voxscale.errors import DataError
from voxscale.volume import Modality

IMAGES = "1.2.840.10008.5.1.4.1.1."
"""Root of the storage classes."""

VOLUMES: dict[str, Modality] = {IMAGES + "2": "CT", IMAGES + "2.1": "CT", IMAGES + "4": "MR", IMAGES + "4.1": "MR"}
"""CT and MR, classic and enhanced: slices that make volumes."""

_RADIOGRAPHS = ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "12.1", "12.2", "12.1.1")
_ULTRASOUND = ("6", "6.1", "3", "3.1")
_PHOTOGRAPHS = ("77.1.1", "77.1.2", "77.1.4", "77.1.5.1", "77.1.5.2", "77.1.5.4")
_PLANAR: dict[Modality, tuple[str, ...]] = {"XR": _RADIOGRAPHS, "US": _ULTRASOUND, "OT": _PHOTOGRAPHS}
PLANAR: dict[str, Modality] = {IMAGES + tail: modality for modality, tails in _PLANAR.items() for tail in tails}
"""Radiographs, ultrasound and photographs: every frame is an image of its own."""

SECONDARY = tuple(IMAGES + tail for tail in ("7", "7.1", "7.2", "7.3", "7.4"))
SEGMENTATIONS = (IMAGES + "66.4", IMAGES + "66.7")
STRUCTURES = IMAGES + "481.3"

HEADER_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "StudyDate",
    "FrameOfReferenceUID",
    "Modality",
    "SOPInstanceUID",
]


def read_headers(paths: Sequence[str]) -> list[dict[str, str] | None]:
    """Read what sorts files into series, without pixels.

    Args:
        paths: DICOM files, with or without the 128-byte preamble.

    Returns:
        Per file None if it is not DICOM, else its `HEADER_TAGS` (empty where absent) and `kind`: `image`, `seg`,
        `rtstruct`, or `other` for storage classes that hold no image.
    """
    return [_read_header(path) for path in paths]


def is_blank(path: str | Path) -> bool:
    """Whether a file begins with zeros where DICOM names itself: a failed disk's, which pydicom reads for hours."""
    with Path(path).open("rb") as handle:
        return not any(handle.read(256))


def _read_header(path: str) -> dict[str, str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_blank(path):
                return None
            found = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(HEADER_TAGS))
            row = {tag: str(found.get(tag) or "") for tag in HEADER_TAGS} | {"SOPClassUID": class_uid(found)}
    except MemoryError:
        raise
    except Exception:  # whatever a damaged file makes pydicom raise
        return None
    if not any(row.values()):
        return None
    row["kind"] = _kind(row["SOPClassUID"])
    return row


def _kind(known: str) -> str:
    if known in SEGMENTATIONS:
        return "seg"
    if known == STRUCTURES:
        return "rtstruct"
    return "image" if not known or "Image Storage" in UID(known).name else "other"


@contextmanager
def plain_errors(message: str, reason: str) -> Generator[None]:
    """Turn whatever pydicom raises on a damaged file into one `DataError`, and silence what it warns of.

    pydicom reads a value when it is asked for, so anything may fail anywhere;
    its warnings quote header values.

    Args:
        message: Begins the error, up to "not fail with".
        reason: Of the error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{message}, not fail with {type(error).__name__}", reason) from None


def class_uid(item: Dataset) -> str:
    """Storage class, from the file's preface where the data set itself leaves it empty."""
    meta: Any = getattr(item, "file_meta", None)
    return str(item.get("SOPClassUID") or (meta and meta.get("MediaStorageSOPClassUID")) or "")


def class_name(known: str) -> str:
    """Public name of a storage class; a private or false UID is not repeated."""
    name = UID(known).name
    return name if name != known else "an unknown storage class"
