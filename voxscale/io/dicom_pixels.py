"""Pixels of DICOM frames: lengths checked first, then decoded by pydicom's decoders, one frame at a time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ImplicitVRLittleEndian

from voxscale.errors import DataError
from voxscale.io.dicom_frames import Frame


def decode(item: Dataset, frame: Frame) -> NDArray[Any]:
    """The stored integers of one frame, (rows, columns), or (rows, columns, 3) in RGB.

    Raises:
        DataError: With reason `truncated`, `undecodable` or `bad_dtype`.
    """
    syntax = _prepare(item)
    try:
        found = np.asarray(pixel_array(item, index=frame.index, raw=True))
        bits, signed = int(item.BitsStored), int(item.PixelRepresentation) == 1
        if (
            found.ndim == 3
            and "YBR" in str(item.get("PhotometricInterpretation") or "")
            and "JPEG 2000" not in syntax.name
        ):
            found = convert_color_space(found, str(item.PhotometricInterpretation), "RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged streams
        name = syntax.name if syntax.name != syntax else "unknown transfer syntax"
        message = f"dicom pixel data ({name}) must decode, not fail with {type(error).__name__}"
        raise DataError(message, "undecodable") from None
    if found.ndim not in (2, 3) or found.dtype.kind not in "iu":
        raise DataError(f"dicom pixels must be one 2D integer image, not {found.ndim}D {found.dtype}", "bad_dtype")
    if found.ndim == 3:
        return found
    stored = _stored_bits(found, bits, signed)
    if frame.tile is None:
        return stored
    number, side = frame.tile
    rows, columns = frame.shape
    row, column = divmod(number, side)
    return stored[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def same_pixels(one: Dataset, other: Dataset) -> bool:
    """Whether two files hold the same pixel bytes."""
    return one.get("PixelData") == other.get("PixelData")


def _prepare(item: Dataset) -> UID:
    """Transfer syntax, filled in where the file has none, after a check of the length."""
    if "PixelData" not in item:
        raise DataError("dicom image must hold pixel data", "truncated")
    meta: Any = getattr(item, "file_meta", None)
    syntax = UID(str(getattr(meta, "TransferSyntaxUID", "") or ImplicitVRLittleEndian))
    if meta is None or "TransferSyntaxUID" not in meta:
        item.ensure_file_meta()
        item.file_meta.TransferSyntaxUID = syntax  # DICOM's default where none is given
    frames = max(1, int(item.get("NumberOfFrames") or 1))
    samples = int(item.get("SamplesPerPixel") or 1)
    pixels = int(item.Rows) * int(item.Columns) * samples * frames
    if "422" in str(item.get("PhotometricInterpretation") or ""):
        pixels = pixels * 2 // 3
    expected = pixels * int(item.get("BitsAllocated") or 0) // 8
    if not syntax.is_compressed and len(item.PixelData) < expected:
        raise DataError(f"dicom.PixelData must have {expected} bytes, not {len(item.PixelData)}", "truncated")
    return syntax


def _stored_bits(frame: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Keep the low `bits` of each pixel; old files hide overlays in the others."""
    spare = frame.dtype.itemsize * 8 - bits
    if spare <= 0 or bits <= 0:
        return frame
    kind = np.dtype(f"{'i' if signed else 'u'}{frame.dtype.itemsize}")
    own = frame.astype(kind, copy=not frame.flags.writeable)
    np.left_shift(own, spare, out=own)
    return np.right_shift(own, spare, out=own)
