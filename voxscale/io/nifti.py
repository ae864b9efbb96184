"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz, .hdr with .img), read only after header and data agree."""

import gzip
import itertools
import logging
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import nibabel
import numpy as np
from isal import igzip, igzip_lib
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from voxscale.errors import DataError, GeometryError
from voxscale.io.loaded import Loaded
from voxscale.io.storage import make_raw
from voxscale.volume import Affine, Modality, Volume, ras_to_sar

HEADERS = {348: (nibabel.Nifti1Header, 344, b"n%b1\0"), 540: (nibabel.Nifti2Header, 4, b"n%b2\0")}
"""By header size: class, place of the magic, and the magic with + (one file) or i (two files)."""

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres per NIfTI length unit: unknown (taken for mm), metre, mm, micrometre."""

FORMS_APART = 0.1
"""Distance of corners, in voxels, from which sform and qform count as different."""

ISAL_ERROR = cast(type[Exception], igzip_lib.IsalError)  # its types take the class for an instance

Shape = tuple[int, int, int]

BLOCK = 1 << 20
"""Bytes read at a time, so that a false size in a header cannot claim memory."""


def read_nifti(path: Path, modality: Modality | None) -> Volume:
    """Read one NIfTI scan; see `load_nifti`.

    Args:
        path: The file; for a pair, the .hdr.
        modality: None guesses it from the values, see `Raw.guess_modality`.
    """
    return load_nifti(path).volume(modality)


def load_nifti(path: Path, part: int = 0) -> Loaded:
    """Read and check one volume of a NIfTI file.

    The affine is the sform if its code is positive, else the qform if its
    code is positive, else the voxel size alone (left and right are then by
    convention only, as NIfTI-1 method 1 has it). A fourth axis counts volumes
    (time points, echoes, directions). A picture of one slice may be in colour.
    Text fields and extensions are never looked at.

    Args:
        path: The file; for a pair, the .hdr (or .hdr.gz).
        part: Which volume along the fourth axis.

    Raises:
        DataError: With reason `unreadable`, `truncated`, `corrupt`,
            `size_mismatch`, `bad_header`, `bad_dtype`, `bad_scaling` or `not_3d`.
        GeometryError: With reason `bad_affine` or `sheared`.
    """
    notes: list[str] = []
    with _plain_errors(), _open(path) as stream:
        header, single = _read_header(stream)
        shape, parts, kind = _layout(header)
        if not 0 <= part < parts:
            raise DataError(f"nifti.part must be 0 to {parts - 1}, not {part}", "no_such_volume")
        affine = _affine(header, shape, notes)
        slope, intercept = _scaling(header)
        skip = _skip(header, single)
        if single:
            _read(stream, skip)
            array = _read_voxels(stream, shape, kind, part, parts)
        else:
            with _open(path.with_name(path.name.replace(".hdr", ".img"))) as data:
                _read(data, skip)
                array = _read_voxels(data, shape, kind, part, parts)
    if array.dtype.names is not None:  # colour: one slice, values as they are
        array = np.stack([array[name] for name in "RGB"])
        slope, intercept = 1.0, 0.0
    return Loaded(make_raw(array, affine, slope, intercept), part=part, parts=parts, notes=tuple(notes))


def _require(ok: bool, reason: str, message: str) -> None:
    if not ok:
        raise DataError(message, reason)


@contextmanager
def _plain_errors() -> Generator[None]:
    """Turn decoding errors into `DataError` without the file names that they carry."""
    logger = logging.getLogger("nibabel.global")
    muted, logger.disabled = logger.disabled, True  # it reports header fields that we check ourselves
    try:
        yield
    except EOFError:
        raise DataError("nifti data must be complete, not cut short", "truncated") from None
    except (gzip.BadGzipFile, zlib.error, ISAL_ERROR):
        raise DataError("nifti data must match its gzip checksum", "corrupt") from None
    except HeaderDataError:
        raise DataError("nifti header must hold allowed values", "bad_header") from None
    except OSError as error:
        raise DataError(f"nifti file must be readable, not fail with error {error.errno}", "unreadable") from None
    finally:
        logger.disabled = muted


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    with path.open("rb") as raw:
        magic = raw.read(2)
    _require(len(magic) == 2, "truncated", "nifti file must not be empty")
    _require(magic == b"\x1f\x8b", "unreadable", "nifti file named .gz must be a gzip file")
    return cast(IO[bytes], igzip.open(path, "rb"))


def _read(stream: IO[bytes], size: int) -> bytearray:
    """Read exactly `size` bytes; raises `EOFError` if there are fewer."""
    data = bytearray()
    while len(data) < size:
        block = stream.read(min(BLOCK, size - len(data)))
        if not block:
            raise EOFError
        data += block
    return data


def _read_header(stream: IO[bytes]) -> tuple[Any, bool]:
    """The header, unmended, and whether the voxels follow in the same file."""
    start = bytes(_read(stream, 4))
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", start)
        if size not in HEADERS:
            continue
        kind, place, magic = HEADERS[size]
        raw = start + bytes(_read(stream, size - 4))
        found = raw[place : place + 4]
        if found in (magic % b"+", magic % b"i"):
            return kind(raw, endianness=order, check=False), found == magic % b"+"
    raise DataError("nifti file must begin with a NIfTI-1 or NIfTI-2 header", "unreadable")


def _layout(header: Any) -> tuple[Shape, int, np.dtype[Any]]:
    """Array shape (i, j, k), number of volumes, and number type; trailing axes of length 1 are dropped."""
    count = int(header["dim"][0])
    _require(1 <= count <= 7, "bad_header", f"nifti.dim[0] must be 1 to 7, not {count}")
    dims = [int(n) for n in header["dim"][1 : count + 1]]
    _require(min(dims) >= 1, "bad_header", f"nifti.dim must be positive, not {dims}")
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    dims += [1] * (3 - len(dims))  # a 2D header is a volume of one slice
    _require(len(dims) <= 4, "not_3d", f"nifti.dim must have 3 axes, or 4 for several volumes, not {dims}")
    shape, parts = (dims[0], dims[1], dims[2]), dims[3] if len(dims) == 4 else 1
    try:
        kind = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise DataError("nifti.datatype must be a known number type", "bad_header") from None
    if kind.names is not None:
        _require(dims[2] == 1, "bad_dtype", "nifti.datatype must be a real number in volumes, not colour")
    elif kind.kind not in "iuf":
        raise DataError("nifti.datatype must be a real number, not complex or bits", "bad_dtype")
    return shape, parts, kind


def _skip(header: Any, single: bool) -> int:
    """Bytes between the header (or the beginning of the .img) and the voxels."""
    offset = float(header["vox_offset"])
    least = int(header["sizeof_hdr"]) + 4 if single else 0
    _require(least <= offset < float("inf"), "bad_header", f"nifti.vox_offset must be at least {least}, not {offset}")
    return int(offset) - (least - 4 if single else 0)


def _affine(header: Any, shape: Shape, notes: list[str]) -> Affine:
    """The affine in our axes and mm."""
    unit = int(header["xyzt_units"]) & 7
    _require(unit in MM_PER_UNIT, "bad_header", f"nifti.xyzt_units must name a length, not {unit}")
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if int(header["sform_code"]) > 0:
        found = header.get_sform()
        _compare_forms(header, found, shape, notes)
    elif not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise GeometryError("nifti.pixdim must be positive where there is no sform", "bad_affine")
    elif int(header["qform_code"]) > 0:
        try:
            found = header.get_qform()
        except (HeaderDataError, ValueError):
            raise GeometryError("nifti.qform must be a rotation", "bad_affine") from None
    else:
        notes.append("the file states no orientation; left and right are by convention only")
        x, y, z = sizes
        found = np.diag([-x, y, z, 1.0])
        found[:3, 3] = -found[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine = ras_to_sar(found)
    affine[:3] *= MM_PER_UNIT[unit]
    return affine


def _compare_forms(header: Any, sform: NDArray[np.float64], shape: Shape, notes: list[str]) -> None:
    """Note where the second of two orientations, which is not used, puts the scan elsewhere."""
    if int(header["qform_code"]) <= 0:
        return
    try:
        other = header.get_qform()
    except (HeaderDataError, ValueError):
        notes.append("the file's qform is no rotation; its sform is used")
        return
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))], dtype=np.float64)
    apart = float(np.linalg.norm((corners @ (sform - other).T)[:, :3], axis=1).max())
    if not apart <= FORMS_APART * float(np.abs(header["pixdim"][1:4]).min()):
        notes.append("the file states two different orientations; the sform is used")


def _scaling(header: Any) -> tuple[float, float]:
    """Slope and intercept; NIfTI says that a slope of 0 (in practice NaN too) means none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    _require(bool(np.isfinite([slope, intercept]).all()), "bad_scaling", "nifti.scl_slope and scl_inter must be finite")
    return slope, intercept


def _read_voxels(stream: IO[bytes], shape: Shape, kind: np.dtype[Any], part: int, parts: int) -> NDArray[Any]:
    """Read one volume, (k, j, i), and go on to the end so that length and gzip checksum are verified."""
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    _skip_bytes(stream, part * size)
    data = _read(stream, size)
    _skip_bytes(stream, (parts - 1 - part) * size)
    _require(not stream.read(1), "size_mismatch", "nifti data must end where the header says, not go on")
    return np.frombuffer(data, dtype=kind).reshape(shape[::-1])


def _skip_bytes(stream: IO[bytes], size: int) -> None:
    """Pass over bytes, which must be there."""
    while size > 0:
        block = len(stream.read(min(BLOCK, size)))
        if not block:
            raise EOFError
        size -= block
