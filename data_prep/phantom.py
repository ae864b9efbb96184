"""Stage `phantom`: writes a cohort of synthetic CT-like scans, unlabelled and labelled, to try the other stages on."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.phantom_anatomy import sample_anatomy
from data_prep.phantom_formats import dicom_files, nifti_bytes, pack
from data_prep.phantom_parts import CLASSES, triple
from data_prep.phantom_render import Grid, intensities, render, rotation, tissue_map
from voxscale.config import config, config_hash, load_json, parse, require, save_json, to_dict
from voxscale.errors import ConfigError, DataError
from voxscale.files import commit_folder, locked, sha256_file, write_json, write_text
from voxscale.progress import Progress
from voxscale.seed import rng

RECIPE = 1
"""Rises whenever the same config would give other scans, so that finished cohorts are made anew."""

README = """These scans are synthetic. No person was ever scanned.

VoxScale's `data_prep phantom` computed them from formulas and random numbers.
They look like CT of the chest and abdomen, in Hounsfield units, and serve to
try out the software. They say nothing about real patients: never use them, or
a network trained on them alone, for medicine.

unlabelled/     scans without labels: NIfTI files and one DICOM series. One file
                is cut short on purpose, to show what happens to a damaged one.
task/           scans with labels and dataset.json, which names the classes.
phantom.json    what was written, with checksums.
"""

Quirk = Literal["plain", "uncompressed", "dicom", "thick", "reoriented", "oblique", "float", "fine", "corrupt"]
QUIRKS: tuple[Quirk, ...] = (
    "plain",
    "dicom",
    "thick",
    "reoriented",
    "oblique",
    "float",
    "fine",
    "corrupt",
    "uncompressed",
)
"""What is special about the first unlabelled scans, in order."""

PARTS = ("unlabelled", "task")
MANIFEST = "phantom.json"


@config
class PhantomConfig:
    """How large a cohort to make.

    Attributes:
        unlabelled: Scans without labels, one of them (the eighth) damaged.
        labelled: Scans with labels, each of another subject.
        seed: Seed of everything drawn.
        workers: Scans made at the same time; does not change the result.
    """

    unlabelled: int = 24
    labelled: int = 12
    seed: int = 0
    workers: int = len(os.sched_getaffinity(0))

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(1 <= self.unlabelled <= 999, "phantom.unlabelled", "1 to 999 scans", self.unlabelled)
        require(1 <= self.labelled <= 999, "phantom.labelled", "1 to 999 scans", self.labelled)
        require(self.workers >= 1, "phantom.workers", "1 or more", self.workers)


@dataclass(frozen=True, slots=True)
class CohortSummary:
    """What lies in a cohort's folder.

    Attributes:
        unlabelled: Scans without labels, the corrupt one included.
        labelled: Scans with labels.
        corrupt: Scans that cannot be read, on purpose.
        bytes: Size of all files.
        reused: Whether a finished cohort was found and left as it was.
    """

    unlabelled: int
    labelled: int
    corrupt: int
    bytes: int
    reused: bool


@config
class CohortFile:
    """One file of a cohort: its path below the folder, size and checksum."""

    path: str
    bytes: int
    sha256: str


@config
class Cohort:
    """What `phantom.json` holds: a hash of all that the scans depend on, and the files."""

    made_from: str
    files: tuple[CohortFile, ...]


def quirk_of(index: int) -> Quirk:
    """What is special about an unlabelled scan; beyond the first few, each fourth is uncompressed."""
    if index < len(QUIRKS):
        return QUIRKS[index]
    return "uncompressed" if index % 4 == 0 else "plain"


def sample_grid(seed: int, case: str, quirk: Quirk = "plain", whole: bool = False) -> Grid:
    """Draw the grid of a scan: abdomen, or chest and abdomen.

    Args:
        seed: Of the cohort.
        case: Name of the subject in the cohort.
        quirk: `thick`, `fine` and `oblique` change the grid.
        whole: Cover all labelled organs, with spacings of 2.2 to 3 mm.
    """
    random = rng(seed, "phantom", case, "grid")
    plane, slices, field = random.uniform(2.2, 2.8), random.uniform(2.2, 3.0), random.uniform(265, 320)
    low, high = random.uniform(-110, -90), random.uniform(65, 85)
    if not whole and random.random() < 0.4:
        low, high = random.uniform(-70, -40), random.uniform(130, 160)
    middle = random.uniform(-8, 8, 2)
    if quirk == "thick":
        plane, slices, field = 0.8, 5.0, 120 * 0.8
        middle = np.array([-20.0, 40.0])
    elif quirk == "fine":
        plane, slices, field, low, high = 0.9, 1.0, 112 * 0.9, -40.0, 10.0
    shape = (round((high - low) / slices), 4 * round(0.84 * field / plane / 4), 4 * round(field / plane / 4))
    turn = random.uniform(8, 20, 3) * random.choice([-1, 1], 3) if quirk == "oblique" else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = rotation(triple(turn)) @ np.diag([slices, plane, plane])
    centre = np.array([(low + high) / 2, *middle])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def write_unlabelled(folder: Path, seed: int, index: int) -> None:
    """Write one unlabelled scan into `folder`, in the format that its index asks for."""
    case, quirk = f"scan_{index:03d}", quirk_of(index)
    anatomy, grid = sample_anatomy(seed, case), sample_grid(seed, case, quirk)
    exact = intensities(anatomy, grid, tissue_map(anatomy, grid))
    hu = np.rint(exact).astype(np.int16)
    if quirk == "dicom":
        (folder / case).mkdir()
        for number, data in enumerate(dicom_files(hu, grid.affine, anatomy.seed), 1):
            (folder / case / f"IM{number:04d}.dcm").write_bytes(data)
        return
    axes = "PSL" if quirk == "reoriented" else "RAS"
    data = nifti_bytes(exact if quirk == "float" else hu, grid.affine, axes)
    if quirk == "uncompressed":
        (folder / f"{case}.nii").write_bytes(data)
        return
    packed = pack(data)
    end = len(packed) * 3 // 5 if quirk == "corrupt" else len(packed)
    (folder / f"{case}.nii.gz").write_bytes(packed[:end])


def write_labelled(folder: Path, seed: int, index: int) -> None:
    """Write one labelled scan into `folder/images` and `folder/labels`."""
    case = f"case_{index:03d}"
    grid = sample_grid(seed, case, whole=True)
    hu, label = render(sample_anatomy(seed, case), grid)
    (folder / "images" / f"{case}.nii.gz").write_bytes(pack(nifti_bytes(hu, grid.affine)))
    (folder / "labels" / f"{case}.nii.gz").write_bytes(pack(nifti_bytes(label, grid.affine)))


def write_scans(folder: Path, config: PhantomConfig) -> None:
    """Write all scans of a cohort and `dataset.json` into an empty folder."""
    for name in ("unlabelled", "task/images", "task/labels"):
        (folder / name).mkdir(parents=True)
    names = {"0": "background"} | {str(value): name for value, name in enumerate(CLASSES, 1)}
    about = {"name": "phantom", "description": "Synthetic CT-like phantoms", "modality": "CT", "labels": names}
    write_json(folder / "task" / "dataset.json", about)
    jobs: list[Callable[[], None]] = [
        *(partial(write_unlabelled, folder / "unlabelled", config.seed, i) for i in range(config.unlabelled)),
        *(partial(write_labelled, folder / "task", config.seed, i) for i in range(config.labelled)),
    ]
    # Threads are enough: NumPy, SciPy and zlib work outside the interpreter lock.
    with ThreadPoolExecutor(config.workers) as pool, Progress("phantom", len(jobs), "scans") as bar:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
            bar.advance(1)


def list_files(folder: Path) -> tuple[CohortFile, ...]:
    """The scans and labels of a cohort, in order of their paths."""
    paths = sorted(path for part in PARTS for path in (folder / part).rglob("*") if path.is_file())
    return tuple(
        CohortFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in paths
    )


def finished(folder: Path, made_from: str) -> Cohort | None:
    """The cohort in a folder, if it is complete, unchanged and made from the same config."""
    try:
        cohort = load_json(Cohort, folder / MANIFEST)
    except ConfigError:
        return None
    return cohort if cohort.made_from == made_from and cohort.files == list_files(folder) else None


def require_own(folder: Path) -> None:
    """Refuse to replace what this stage did not write; raises `DataError`."""
    readme = folder / "README.txt"
    own = readme.is_file() and readme.read_text(errors="replace").startswith(README.splitlines()[0])
    if not own and any((folder / name).exists() for name in (*PARTS, readme.name)):
        raise DataError(
            "phantom.folder must be new or hold a phantom cohort, not other files; choose another", "not_own"
        )


def make_cohort(folder: Path, config: PhantomConfig) -> CohortSummary:
    """Write a cohort, or recognise a finished one of the same config.

    `folder/unlabelled` and `folder/task` appear whole or not at all, and the
    list of files `folder/phantom.json` comes last. The same config gives the
    same bytes.

    Args:
        folder: New, or one that holds a phantom cohort, which is then replaced.
        config: What to make.

    Raises:
        DataError: If the folder holds other scans, or another process is writing to it.
    """
    values = to_dict(config)
    made_from = config_hash({"recipe": RECIPE} | {key: values[key] for key in values if key != "workers"})
    with locked(folder):
        cohort = finished(folder, made_from)
        reused = cohort is not None
        if cohort is None:
            require_own(folder)
            write_text(folder / "README.txt", README)
            (folder / MANIFEST).unlink(missing_ok=True)
            beside = folder / ".partial"
            shutil.rmtree(beside, ignore_errors=True)
            write_scans(beside, config)
            for part in PARTS:
                commit_folder(beside / part, folder / part)
            beside.rmdir()
            cohort = Cohort(made_from=made_from, files=list_files(folder))
            save_json(cohort, folder / MANIFEST)
    corrupt = sum(quirk_of(index) == "corrupt" for index in range(config.unlabelled))
    size = sum(file.bytes for file in cohort.files)
    return CohortSummary(config.unlabelled, config.labelled, corrupt, size, reused)


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep phantom FOLDER [--flags]`; returns the exit status."""
    folder = args[0] if args and not args[0].startswith("-") else None
    options = parse(PhantomConfig, None, args[1:] if folder else args, "python -m data_prep phantom FOLDER")
    require(folder is not None, "phantom.folder", "given first", folder)
    print(json.dumps(asdict(make_cohort(Path(str(folder)), options))))
    return 0
