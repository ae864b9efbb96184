"""Reading scans: every reader checks a file before it trusts it and returns canonical orientation."""

from pathlib import Path

from voxscale.errors import DataError
from voxscale.io.itk import load_itk
from voxscale.io.nifti import load_nifti
from voxscale.io.storage import Raw

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz")
ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")


def suffix_of(path: Path) -> str:
    """The file name's ending in lower case, `.gz` taken together with what stands before it."""
    name = path.name.lower()
    return "".join(Path(name).suffixes[-2:]) if name.endswith(".gz") else path.suffix.lower()


def load_file(path: Path) -> Raw:
    """Read a scan or a label that is one file (or one pair), by its ending.

    Raises:
        DataError: See `load_nifti` and `load_itk`.
    """
    suffix = suffix_of(path)
    if suffix in NIFTI_SUFFIXES:
        return load_nifti(path)
    if suffix in ITK_SUFFIXES:
        return load_itk(path)
    raise DataError(f"file must be one of {', '.join(NIFTI_SUFFIXES + ITK_SUFFIXES)}", "unreadable")
