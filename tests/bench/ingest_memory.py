"""What a reader process needs at most, measured from inside it."""

import ctypes
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from data_prep.config import IngestConfig
from data_prep.scan import Identity, Job, take_in
from voxscale.store_root import create_store


def limit(raw: int, wide: bool) -> float:
    """The most bytes that docs/design.md states; `wide` are numbers of more than 16 bits."""
    return max(4 * raw, 3 * raw + 32e6 if wide else 2 * raw + 22e6)


def limit_2d(pixels: int, colour: bool) -> float:
    """The most bytes for a 2D image, with a mask or without."""
    return (52 if colour else 20) * pixels + 22e6


def made(path: Path, shape: tuple[int, int, int], dtype: str, spacing: tuple[float, float, float]) -> None:
    """Write a cylinder in air with noise, (z, y, x), as a scanner would see it."""
    noise, (y, x) = np.random.default_rng(0), shape[1:]
    middle = [np.linspace(-1, 1, n) for n in (y, x)]
    inside = (middle[0][:, None] ** 2 + middle[1] ** 2) < 0.6
    body, air, width = (120, 8, 3) if dtype == "uint8" else (40, -1000, 20)
    voxels = np.empty(shape, dtype=dtype)
    for plane in voxels:
        drawn = noise.normal(0, width, (y, x)) + np.where(inside, body, air)
        plane[...] = drawn if plane.dtype.kind == "f" else np.rint(np.clip(drawn, *_ends(plane.dtype)))
    nib.save(nib.Nifti1Image(voxels.T, np.diag([*spacing[::-1], 1.0])), path)


def cut_of(file: Path, small: Path) -> Path:
    """Write 64 x 64 x 64 voxels, or as many as there are, of a NIfTI scan to a file of their own."""
    image = nib.load(file)
    voxels = np.asarray(image.dataobj[tuple(slice(n // 4, n // 4 + 64) for n in image.shape)])
    nib.save(nib.Nifti1Image(voxels, image.affine), small)
    return small


def file_case(file: Path) -> dict[str, Any]:
    """Fields of the `Job` of one file."""
    return {"files": [str(file)]}


def _ends(dtype: np.dtype) -> tuple[int, int]:
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _status(field: str) -> int:
    """Bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def watched(case: Mapping[str, Any], small: Mapping[str, Any], folder: str) -> dict[str, int]:
    """Take in one scan.

    Args:
        case: Fields of its `Job`: at least `files`, as texts.
        small: The same of a small scan of its kind, which is taken in before.
        folder: A folder to be made, for a store.

    Returns:
        Resident bytes before, and the most there were.
    """
    root = Path(folder)
    root.mkdir()
    create_store(root / "store", {})
    (root / "store" / ".scratch").mkdir()
    jobs = [_job(root, "1" * 16, small), _job(root, "0" * 16, case)]
    for job in jobs[:1]:  # what is imported or built once is not the volume's
        told = take_in(job)
        assert "entry" in told, told
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the most so far starts anew
    idle = _status("VmRSS")
    told = take_in(jobs[1])
    assert "entry" in told, told
    return {"idle": idle, "peak": _status("VmHWM")}


def _job(root: Path, key: str, case: Mapping[str, Any]) -> Job:
    settings = IngestConfig()
    plain = {
        "dicom": False,
        "part": 0,
        "several": False,
        "label": (),
        "label_format": "file",
        "label_values": {},
        "dataset": "main",
        "modality": None,
        "identity": Identity("s", None, None, None),
        "image_class": None,
        "classes": {},
        "read": settings.read,
        "rules": settings.rules,
        "privacy": settings.privacy,
        "store": root / "store",
        "scratch": root / "store" / ".scratch",
    }
    paths = {name: tuple(map(Path, case[name])) for name in ("files", "label") if name in case}
    return Job(**(plain | dict(case) | paths | {"key": key}))
