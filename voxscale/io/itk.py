"""NRRD and MetaImage files (.nrrd, .mha, .mhd), read through SimpleITK after a look at their text header."""

import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name its manual uses)

from voxscale.errors import DataError
from voxscale.io.loaded import Loaded
from voxscale.io.storage import make_raw
from voxscale.volume import Affine, Modality, Volume, lps_to_sar

HEADER_BYTES = 1 << 16
"""Longest text header looked at."""

BLOCK = 1 << 22
"""Bytes read at a time."""

SPACING_KEYS = {"space directions", "spacings", "elementspacing", "elementsize"}
ORIENTATION_KEYS = {"space", "space dimension", "transformmatrix", "rotation", "orientation", "anatomicalorientation"}
DATA_KEYS = ("data file", "datafile", "elementdatafile")


def read_itk(path: Path, modality: Modality | None) -> Volume:
    """Read one scan; see `load_itk`. None guesses the modality from the values."""
    return load_itk(path).volume(modality)


def load_itk(path: Path, part: int = 0) -> Loaded:
    """Read and check one volume of a NRRD or MetaImage file; a fourth axis counts volumes.

    Args:
        path: The .nrrd, .mha or .mhd.
        part: Which volume along the fourth axis.

    Raises:
        DataError: With reason `unreadable`, `no_geometry`, `unsafe_path`, `truncated`, `corrupt`,
            `not_3d`, `bad_dtype` or `undecodable`.
        GeometryError: With reason `bad_affine` or `sheared`.
    """
    header = _text_header(path)
    data_file(path)
    if not SPACING_KEYS & header.keys():
        raise DataError("itk header must state a voxel spacing", "no_geometry")
    _check_stream(path, header)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # warnings name the file
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        parts = _check_grid(reader)
        if not 0 <= part < parts:
            raise DataError(f"itk.part must be 0 to {parts - 1}, not {part}", "no_such_volume")
        image = reader.Execute()
    except RuntimeError as error:
        if "alloc" in str(error).lower():
            raise MemoryError from None
        raise DataError("itk data must be complete and decodable", "undecodable") from None
    notes = () if _oriented(header) else ("the file states no orientation; left and right are by convention only",)
    array = sitk.GetArrayFromImage(image)
    raw = make_raw(array[part] if array.ndim == 4 else array, _affine(image))
    return Loaded(raw, part=part, parts=parts, notes=notes)


def _oriented(header: dict[str, str]) -> bool:
    """Whether the header says which way the axes run in the patient."""
    return bool(ORIENTATION_KEYS & header.keys())


def _check_stream(path: Path, header: dict[str, str]) -> None:
    """Verify length and checksum of a compressed MetaImage, which ITK takes as it comes."""
    if header.get("compresseddata", "").lower() != "true":
        return
    beside = data_file(path)
    expand = zlib.decompressobj()
    if beside is not None and not beside.is_file():
        raise DataError("itk data file must lie beside its header", "truncated")
    with (beside or path).open("rb") as handle:
        if beside is None:
            head = handle.read(HEADER_BYTES)
            handle.seek(head.index(b"\n", head.lower().index(b"elementdatafile")) + 1)
        try:
            while not expand.eof and (block := handle.read(BLOCK)):
                expand.decompress(block)
        except zlib.error:
            raise DataError("itk data must match its checksum", "corrupt") from None
    if not expand.eof:
        raise DataError("itk data must be complete, not cut short", "truncated")


def data_file(path: Path) -> Path | None:
    """The file that holds the voxels, or None if they follow the header.

    Raises:
        DataError: With reason `unsafe_path` if it does not lie beside the header.
    """
    header = _text_header(path)
    name = next((header[key] for key in DATA_KEYS if key in header), "LOCAL")
    if name.upper() == "LOCAL":
        return None
    if not re.fullmatch(r"[^/\\%:]+", name) or name.upper().startswith("LIST") or name in (".", ".."):
        raise DataError("itk data file must be one file beside its header", "unsafe_path")
    return path.with_name(name)


def _text_header(path: Path) -> dict[str, str]:
    """Fields of the text header, keys in lower case."""
    try:
        with path.open("rb") as handle:
            text = handle.read(HEADER_BYTES).decode("latin-1")
    except OSError as error:
        raise DataError(f"itk file must be readable, not fail with error {error.errno}", "unreadable") from None
    nrrd = text.startswith("NRRD000")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if nrrd and not line:
            break
        key, found, value = line.partition(": " if nrrd else "=")
        if found:
            fields[key.strip().lower()] = value.strip()
        if "elementdatafile" in fields:
            break
    if not (nrrd or {"ndims", "dimsize", "elementdatafile"} <= fields.keys()):
        raise DataError("itk file must begin with a NRRD or MetaImage header", "unreadable")
    return fields


def _check_grid(reader: sitk.ImageFileReader) -> int:
    """Check what the header announces before any voxel is read; returns the number of volumes."""
    size = reader.GetSize()
    if len(size) not in (3, 4) or 0 in size:
        raise DataError(f"itk image must have 3 axes, or 4 for several volumes, not {list(size)}", "not_3d")
    kind = reader.GetPixelID()
    scalar = kind not in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
    if reader.GetNumberOfComponents() != 1 or not scalar:
        raise DataError("itk image must have one real number per voxel", "bad_dtype")
    return size[3] if len(size) == 4 else 1


def _affine(image: sitk.Image) -> Affine:
    """ITK's geometry in our axes and mm; of a fourth axis nothing is kept."""
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (axes, axes))[:3, :3] * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return lps_to_sar(affine)
