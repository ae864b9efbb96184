"""Reading scans: every reader checks a file before it trusts it and returns canonical orientation."""

from pathlib import Path

from voxscale.errors import DataError
from voxscale.io.image2d import load_image2d
from voxscale.io.loaded import Loaded
from voxscale.io.nifti import load_nifti

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz")
ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def suffix_of(path: Path) -> str:
    """The file name's ending in lower case, `.gz` taken together with what stands before it."""
    name = path.name.lower()
    return "".join(Path(name).suffixes[-2:]) if name.endswith(".gz") else path.suffix.lower()


def load_file(path: Path, part: int = 0) -> Loaded:
    """Read one volume of a scan or a label that is one file (or one pair), by its ending.

    Raises:
        DataError: See `load_nifti`, `load_itk` and `load_image2d`.
    """
    suffix = suffix_of(path)
    if suffix in NIFTI_SUFFIXES:
        return load_nifti(path, part)
    if suffix in ITK_SUFFIXES:
        from voxscale.io.itk import load_itk  # trainings, which read stores alone, need not have its library

        return load_itk(path, part)
    if suffix in IMAGE_SUFFIXES:
        return load_image2d(path, part)
    known = ", ".join(NIFTI_SUFFIXES + ITK_SUFFIXES + IMAGE_SUFFIXES)
    raise DataError(f"file must be one of {known}", "unreadable")
