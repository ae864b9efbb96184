"""`Frame`: one slice of a DICOM series, whether it is a file, a frame of an enhanced file or a tile of a mosaic."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from voxscale.errors import DataError
from voxscale.io.dicom_technique import image_type

KEYS = ("type", "echo", "stack", "temporal", "diffusion", "acquisition", "trigger", "time")
"""What may tell volumes of one series apart, in the order in which it is tried."""


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nibabel calls its DICOM readers experimental; only its CSA parser is used
    import nibabel.nicom.csareader as csa


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a slice is and where its pixels are.

    Attributes:
        file: Number of its file in the series.
        index: Frame within the file, from 0.
        tile: Tile of a mosaic (row-major) and tiles per side, or None.
        shape: Rows and columns.
        corner: (3,) centre of its first pixel in (L, P, S) mm; None where the header does not say.
        turn: (6,) directions along a row and along a column.
        size: (2,) mm between rows and between columns.
        scale: Slope and intercept.
        keys: Value of each of `KEYS`, empty where absent.
        uid: SOPInstanceUID and frame, to tell copies.
        instance: InstanceNumber, to sort by.
    """

    file: int
    index: int
    tile: tuple[int, int] | None
    shape: tuple[int, int]
    corner: NDArray[np.float64] | None
    turn: NDArray[np.float64] | None
    size: NDArray[np.float64] | None
    scale: tuple[float, float]
    keys: tuple[str, ...]
    uid: str
    instance: float


def frames_of(item: Dataset, file: int) -> list[Frame]:
    """All slices of one file.

    Raises:
        DataError: With reason `not_an_image`, `bad_scaling` or `missing_geometry`.
    """
    if "Rows" not in item or "Columns" not in item:
        raise DataError("dicom image must have Rows and Columns", "not_an_image")
    if "MOSAIC" in image_type(item):
        return list(_mosaic(item, file))
    count = max(1, int(item.get("NumberOfFrames") or 1))
    per_frame: Any = item.get("PerFrameFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) != count:
        raise DataError(f"dicom.PerFrameFunctionalGroupsSequence must have {count} items", "missing_geometry")
    shared: Any = item.get("SharedFunctionalGroupsSequence") or [Dataset()]
    groups = per_frame or [Dataset()] * count
    return [_frame(item, file, index, [group, shared[0], item]) for index, group in enumerate(groups)]


def _frame(item: Dataset, file: int, index: int, places: list[Dataset]) -> Frame:
    """One frame; each value is looked for in its own group, the shared group, and the file."""

    def find(macro: str, tag: str) -> Any:
        for place in places[:2]:
            inside: Any = place.get(macro)
            if inside and tag in inside[0]:
                return inside[0].get(tag)
        return item.get(tag)

    keys = {
        "type": "/".join(_frame_type(item, places)),
        "echo": _text(find("MREchoSequence", "EffectiveEchoTime") or item.get("EchoTime") or item.get("EchoNumbers")),
        "stack": _text(find("FrameContentSequence", "StackID")),
        "temporal": _text(
            find("FrameContentSequence", "TemporalPositionIndex") or item.get("TemporalPositionIdentifier")
        ),
        "diffusion": _diffusion(item, places),
        "acquisition": _text(find("FrameContentSequence", "FrameAcquisitionNumber") or item.get("AcquisitionNumber")),
        "trigger": _text(item.get("TriggerTime")),
        "time": _text(item.get("AcquisitionTime") or item.get("ContentTime")),
    }
    return Frame(
        file=file,
        index=index,
        tile=None,
        shape=(int(item.Rows), int(item.Columns)),
        corner=_numbers(find("PlanePositionSequence", "ImagePositionPatient"), 3),
        turn=_numbers(find("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        size=_numbers(find("PixelMeasuresSequence", "PixelSpacing"), 2),
        scale=_scale(
            find("PixelValueTransformationSequence", "RescaleSlope"),
            find("PixelValueTransformationSequence", "RescaleIntercept"),
        ),
        keys=tuple(keys[name] for name in KEYS),
        uid=f"{item.get('SOPInstanceUID') or ''}/{index}",
        instance=_number(item.get("InstanceNumber")),
    )


def _mosaic(item: Dataset, file: int) -> Iterator[Frame]:
    """Tiles of a Siemens mosaic: one file is one volume (geometry as in nibabel's notes on the CSA header)."""
    whole = _frame(item, file, 0, [Dataset(), Dataset(), item])
    try:
        header: Any = csa.get_csa_header(item, "image") or {}
        count = int(csa.get_n_mosaic(header) or 0)
        normal = np.asarray(csa.get_slice_normal(header), dtype=np.float64)
    except MemoryError:
        raise
    except Exception:  # a private header holds whatever it likes
        count, normal = 0, np.empty(0)
    step = _number(item.get("SpacingBetweenSlices"))
    known = whole.corner is not None and whole.turn is not None and whole.size is not None
    side = math.ceil(math.sqrt(count)) if count > 0 else 0
    rows, columns = whole.shape
    usable = known and side > 0 and normal.shape == (3,) and np.isfinite(normal).all() and step > 0
    if not usable or rows % side or columns % side:
        raise DataError(
            "dicom mosaic must tell its number of slices, their normal and their spacing", "missing_geometry"
        )
    assert whole.corner is not None  # known above
    assert whole.turn is not None
    assert whole.size is not None
    tile = rows // side, columns // side
    # The position given is that of an image as large as the mosaic, with the same centre as the slices.
    in_plane = whole.turn[:3] * whole.size[1] * (columns - tile[1]) / 2
    in_plane = in_plane + whole.turn[3:] * whole.size[0] * (rows - tile[0]) / 2
    for number in range(count):
        corner = whole.corner + in_plane + number * step * normal
        yield Frame(
            file=file,
            index=0,
            tile=(number, side),
            shape=tile,
            corner=corner,
            turn=whole.turn,
            size=whole.size,
            scale=whole.scale,
            keys=whole.keys,
            uid=f"{whole.uid}/{number}",
            instance=whole.instance,
        )


def _frame_type(item: Dataset, places: list[Dataset]) -> tuple[str, ...]:
    for place in places[:2]:
        for macro in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"):
            inside: Any = place.get(macro)
            if inside and "FrameType" in inside[0]:
                return tuple(str(part).upper() for part in inside[0].FrameType)
    return image_type(item)


def _diffusion(item: Dataset, places: list[Dataset]) -> str:
    """b-value and direction, from the standard's places."""
    holders = [item]
    for place in places[:2]:
        inside: Any = place.get("MRDiffusionSequence")
        holders += list(inside or [])
    for holder in holders:
        if "DiffusionBValue" in holder:
            direction: Any = holder.get("DiffusionGradientOrientation")
            inner: Any = holder.get("DiffusionGradientDirectionSequence")
            if inner:
                direction = inner[0].get("DiffusionGradientOrientation")
            return f"{_text(holder.get('DiffusionBValue'))} {_text(direction)}"
    return ""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) else 0.0


def _numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    """A numeric header field, (count,) float64, or None if it is absent or damaged."""
    try:
        found = np.asarray([float(part) for part in value], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.shape == (count,) and np.isfinite(found).all() else None


def _scale(slope: Any, intercept: Any) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the header has none."""
    try:
        found = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    except (TypeError, ValueError, OverflowError):
        found = math.nan, math.nan
    if not all(map(math.isfinite, found)) or found[0] == 0:
        raise DataError("dicom.RescaleSlope and RescaleIntercept must be numbers, the slope not 0", "bad_scaling")
    return found
