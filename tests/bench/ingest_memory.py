"""What a reader process needs at most, measured from inside it."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.config import IngestConfig
from data_prep.scan import Identity, Job, take_in
from voxscale.store_root import create_store


def _status(field: str) -> int:
    """Bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def watched(file: str, folder: str) -> dict[str, int]:
    """Take in one scan.

    Args:
        file: The scan.
        folder: A folder to be made, for a store.

    Returns:
        Resident bytes before, and the most there were.
    """
    root, settings = Path(folder), IngestConfig()
    root.mkdir()
    create_store(root / "store", {})
    (root / "store" / ".scratch").mkdir()
    job = Job(
        key="0" * 16,
        files=(Path(file),),
        dicom=False,
        part=0,
        several=False,
        label=(),
        label_format="file",
        label_values={},
        dataset="main",
        modality=None,
        identity=Identity("s", None, None, None),
        image_class=None,
        classes={},
        read=settings.read,
        rules=settings.rules,
        privacy=settings.privacy,
        store=root / "store",
        scratch=root / "store" / ".scratch",
    )
    take_in(_small(job, root))  # what is imported or built once is not the volume's
    Path("/proc/self/clear_refs").write_text("5")  # the most so far starts anew
    idle = _status("VmRSS")
    told = take_in(job)
    assert "entry" in told, told
    return {"idle": idle, "peak": _status("VmHWM")}


def _small(job: Job, root: Path) -> Job:
    """The same for a cut of 64 x 64 x 64 voxels of the scan."""
    image = nib.load(job.files[0])
    voxels = np.asarray(image.dataobj[tuple(slice(n // 4, n // 4 + 64) for n in image.shape)])
    (root / "small").mkdir()
    nib.save(nib.Nifti1Image(voxels, image.affine), root / "small" / "small.nii")
    return replace(job, key="1" * 16, files=(root / "small" / "small.nii",))
