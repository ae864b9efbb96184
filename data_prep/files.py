"""Telling files apart by name and first bytes, and reading the tables that users give."""

import csv
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxscale.errors import DataError
from voxscale.io import IMAGE_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES, suffix_of
from voxscale.io.itk import data_file

DATA_SUFFIXES = (".img", ".img.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_STARTS = (b"\x08\x00", b"\x02\x00")
"""First bytes of a DICOM file without preamble: group 0008 or 0002."""
SIDECARS = (".json", ".csv", ".tsv", ".bval", ".bvec", ".txt", ".md", ".xml", ".yaml", ".yml", ".html", ".pdf")
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz")


def what_is(path: Path) -> str:
    """What a file that is no scan is counted as."""
    if path.name.startswith("."):
        return "hidden"
    suffix = suffix_of(path)
    if suffix in ARCHIVES:
        return "archives"
    if suffix in IMAGE_SUFFIXES:
        return "pictures"
    return "sidecars" if suffix in SIDECARS else "others"


def sort_volumes(files: Sequence[Path]) -> tuple[list[tuple[Path, ...]], list[Path]]:
    """Volume files with what belongs to them, and all other files."""
    named = {path.name: path for path in files if not path.name.startswith(".")}
    volumes: list[tuple[Path, ...]] = []
    for path in files:
        if path.name in named and suffix_of(path) in NIFTI_SUFFIXES + ITK_SUFFIXES:
            volumes.append((path, *(other for other in _companions(path) if other.is_file())))
    taken = {part for parts in volumes for part in parts}
    volumes += [
        (path,) for path in files if path.name in named and suffix_of(path) in DATA_SUFFIXES and path not in taken
    ]
    taken |= {part for parts in volumes for part in parts}
    return sorted(volumes), [path for path in files if path not in taken]


def sort_pictures(files: Sequence[Path]) -> tuple[list[tuple[Path, ...]], list[Path]]:
    """2D images, and all other files."""
    found = [path for path in files if suffix_of(path) in IMAGE_SUFFIXES and not path.name.startswith(".")]
    return [(path,) for path in found], [path for path in files if path not in set(found)]


def _companions(path: Path) -> Iterator[Path]:
    """The file that holds the voxels of a header file."""
    suffix = suffix_of(path)
    if suffix in (".hdr", ".hdr.gz"):
        yield path.with_name(re.sub(r"\.hdr(?=$|\.)", ".img", path.name))
    elif suffix in ITK_SUFFIXES:
        try:
            beside = data_file(path)
        except DataError:
            return  # reading it will say why
        if beside is not None:
            yield beside


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file in UTF-8 by its columns, without the mark that Excel begins it with; none if it is no such."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device, whose opening may wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # a link to nothing is a file that cannot be read
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and the folders in it, in order; links to nothing too, so that their absence is told."""
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not is_special(path)]


def stem_of(path: Path) -> str:
    """File name without its ending."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def is_dicom(path: Path) -> bool | None:
    """True for DICOM by magic or name, None if it may be DICOM without preamble, False otherwise."""
    try:
        with path.open("rb") as handle:
            start = handle.read(132)
    except OSError:
        start = b""
    return starts_as_dicom(path, start)


def starts_as_dicom(path: Path, start: bytes) -> bool | None:
    """The same, given the file's first bytes."""
    if path.name.startswith("."):
        return False
    if start[128:132] == b"DICM" or suffix_of(path) in DICOM_SUFFIXES:
        return True
    return None if start.startswith(DICOM_STARTS) else False
