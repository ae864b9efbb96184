"""TotalSegmentator's layout: a folder per case, the scan and one mask per class in a folder beside it."""

from collections.abc import Collection, Sequence
from pathlib import Path

from data_prep.files import files_below, stem_of
from data_prep.source import Source
from voxscale.io import NIFTI_SUFFIXES, suffix_of
from voxscale.io.structures import Structure

MASKS = "segmentations"
"""Folder of the masks, beside the scan."""
SCANS = ("ct.nii.gz", "mri.nii.gz", "ct.nii", "mri.nii")


def is_case(folders: Collection[str], files: Sequence[Path]) -> bool:
    """Whether a folder with these folders and files is a case."""
    return MASKS in folders and any(path.name in SCANS for path in files)


def source_of(folder: Path, files: Sequence[Path], masks: Path, root: Path) -> tuple[Source, int]:
    """The scan of a case with its masks, and how many files beside the masks are none.

    Args:
        folder: Of the case; its name is the subject's.
        files: In it.
        masks: Its folder of masks.
        root: Source folder that all of it lies in.
    """
    scan = next(path for path in files if path.name in SCANS)
    inside = files_below(masks)
    label = tuple(path for path in inside if suffix_of(path) in NIFTI_SUFFIXES)
    source = Source(
        (scan,),
        scan.relative_to(root).as_posix(),
        stem_of(scan),
        label=label,
        label_format="masks",
        label_names=tuple(Structure(number, None, stem_of(path)) for number, path in enumerate(label, 1)),
        person=f"case:{folder.name}",
        modality="CT" if scan.name.startswith("ct") else "MR",
    )
    return source, len(inside) - len(label)
