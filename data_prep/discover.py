"""Finding scans: walks folders in a fixed order and says what belongs together."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.config import Labels
from data_prep.labels import read_modality, read_task
from voxscale.config import require
from voxscale.errors import ConfigError, DataError
from voxscale.io import ITK_SUFFIXES, NIFTI_SUFFIXES, suffix_of
from voxscale.io.dicom import read_headers
from voxscale.io.isolate import run_isolated
from voxscale.io.itk import data_file
from voxscale.volume import Modality

TASK_FOLDERS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
"""Folder of images and folder of labels of a task."""

DATA_SUFFIXES = (".img", ".img.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_STARTS = (b"\x08\x00", b"\x02\x00")
"""First bytes of a DICOM file without preamble: group 0008 or 0002."""

HEADERS_AT_ONCE = 500
CHANNEL = re.compile(r"_\d{4}$")
"""nnU-Net's channel number at the end of an image's name."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input.

    Attributes:
        files: Its files, the one to open first.
        place: Path of the first file below its root, with slashes.
        stem: File name without its ending; for a DICOM series the folder's name.
        kind: `image`, or `label` for a label without image.
        dicom: Whether the files are slices of a DICOM series.
        label: Files of its label, the one to open first.
        person: Patient, study or case as the input itself names it.
        classes: Declared names of label values.
        modality: Declared by the task.
        problem: Rule and reason, if it is clear without reading that it cannot be used.
    """

    files: tuple[Path, ...]
    place: str
    stem: str
    kind: Literal["image", "label"] = "image"
    dicom: bool = False
    label: tuple[Path, ...] = ()
    person: str | None = None
    classes: dict[int, str] = field(default_factory=dict)
    modality: Modality | None = None
    problem: tuple[str, str] | None = None


@dataclass(slots=True)
class Discovery:
    """All that was found.

    Attributes:
        sources: Inputs in a fixed order.
        classes: Declared names of label values, of all tasks together.
        others: Files that are neither scan nor label (text, DICOM objects without image, hidden files).
    """

    sources: list[Source] = field(default_factory=list)
    classes: dict[int, str] = field(default_factory=dict)
    others: int = 0


@dataclass(slots=True)
class _Task:
    """A folder of images with its folder of labels, while it is walked.

    Attributes:
        images: The folder of images.
        labels: Files of each label by the case's name; None if labels are ignored.
        classes: Declared names of label values.
        modality: Declared modality.
        used: Cases with an image, and the name of the image that has the label.
    """

    images: Path
    labels: dict[str, tuple[Path, ...]] | None
    classes: dict[int, str]
    modality: Modality | None
    used: dict[str, str] = field(default_factory=dict)


def discover(
    roots: Sequence[Path], seconds: float = 600.0, gigabytes: float = 8.0, labels: Labels = "use"
) -> Discovery:
    """Find every scan and label below the given folders.

    Args:
        roots: Folders, none inside another.
        seconds: Time limit for reading DICOM headers of one folder.
        gigabytes: Memory limit for the same.
        labels: Whether to pair images with labels; see `IngestConfig`.

    Raises:
        ConfigError: If a root is missing or inside another.
        DataError: If `dataset.json` of a task is damaged or two tasks name a class differently.
    """
    real = [root.resolve() for root in roots]
    for number, root in enumerate(real, 1):
        if not root.is_dir():
            raise ConfigError(f"source folder {number} of {len(real)} must exist")
        inside = any(other in (root, *root.parents) for other in real[: number - 1] + real[number:])
        require(not inside, "sources", "folders of which none holds another", f"folder {number} of {len(real)}")
    found = Discovery()
    for root in real:
        _Walk(root, found, seconds, gigabytes, labels).visit(root, None)
    return found


@dataclass(slots=True)
class _Walk:
    """The walk through one root; `seen` guards against links that lead in a circle."""

    root: Path
    found: Discovery
    seconds: float
    gigabytes: float
    labels: Labels
    seen: set[Path] = field(default_factory=set)

    def visit(self, folder: Path, task: _Task | None) -> None:
        """Take in the files of a folder, then its folders."""
        if folder.resolve() in self.seen:
            return
        self.seen.add(folder.resolve())
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise DataError(f"source folders must be readable, not fail with {error.strerror}", "unreadable") from None
        folders = {path.name: path for path in entries if path.is_dir() and not path.name.startswith(".")}
        self._files(folder, [path for path in entries if not path.is_dir()], task)
        if self.labels == "ignore" and not folders.keys().isdisjoint(TASK_FOLDERS):
            self._unlabelled(folder, folders, task)
            return
        pairs = {i: j for i, j in TASK_FOLDERS.items() if i in folders and j in folders}
        labels = set(pairs.values())
        for name, path in folders.items():
            if pairs and name in TASK_FOLDERS:
                self._task(path, folders.get(TASK_FOLDERS[name]))
            elif name not in labels:
                self.visit(path, task)

    def _unlabelled(self, folder: Path, folders: dict[str, Path], task: _Task | None) -> None:
        """Visit the folders beside and in a task whose labels are ignored."""
        modality = read_modality(folder)
        for name, path in folders.items():
            if name in TASK_FOLDERS:
                self.visit(path, _Task(path, None, {}, modality))
            elif name in TASK_FOLDERS.values():
                self.found.others += sum(file.is_file() for file in path.rglob("*"))
            else:
                self.visit(path, task)

    def _task(self, images: Path, labels: Path | None) -> None:
        """Visit the images of a task, then report its labels without image."""
        classes, modality = read_task(images.parent)
        for value, name in classes.items():
            if self.found.classes.setdefault(value, name) != name:
                names = f"{self.found.classes[value]!r} and {name!r}"
                raise DataError(f"class {value} must have one name in all tasks, not {names}", "class_conflict")
        files = [path for path in sorted(labels.rglob("*")) if path.is_file()] if labels else []
        volumes, rest = _volumes(files)
        self.found.others += len(rest)
        known: dict[str, tuple[Path, ...]] = {}
        for parts in volumes:
            assert labels is not None  # else there are no volumes
            known.setdefault((parts[0].parent.relative_to(labels) / _stem(parts[0])).as_posix(), parts)
        task = _Task(images, known, classes, modality)
        self.visit(images, task)
        used = {known[case] for case in task.used}
        for parts in volumes:
            if parts not in used:
                reason = ("no_image", "no image of the task has this label's name")
                place = parts[0].relative_to(self.root).as_posix()
                self.found.sources.append(Source(parts, place, _stem(parts[0]), kind="label", problem=reason))

    def _files(self, folder: Path, files: list[Path], task: _Task | None) -> None:
        """Sort the files of one folder into volumes, DICOM series and others."""
        volumes, rest = _volumes(files)
        sources = [self._source(parts, task, _stem(parts[0])) for parts in volumes]
        sure = [path for path in rest if _is_dicom(path) is True]
        maybe = [path for path in rest if _is_dicom(path) is None]
        series: dict[str, list[tuple[Path, dict[str, str]]]] = {}
        for path, header in zip(sure + maybe, self._headers(sure + maybe), strict=True):
            if header is None and path in sure:
                sources.append(self._source((path,), task, folder.name, dicom=True))
            elif header is not None and header["kind"] == "image":
                series.setdefault(header["SeriesInstanceUID"], []).append((path, header))
            else:
                self.found.others += 1
        for members in series.values():
            first = members[0][1]
            names = {"patient": first["PatientID"], "study": first["StudyInstanceUID"]}
            person = next((f"{what}:{name}" for what, name in names.items() if name), None)
            parts = tuple(sorted(path for path, _ in members))
            sources.append(self._source(parts, task, folder.name, dicom=True, person=person))
        self.found.others += len(rest) - len(sure) - len(maybe)
        self.found.sources += sorted(sources, key=lambda source: source.files)

    def _source(
        self, parts: tuple[Path, ...], task: _Task | None, stem: str, dicom: bool = False, person: str | None = None
    ) -> Source:
        """One image, with its label if it belongs to a task."""
        place = parts[0].relative_to(self.root).as_posix()
        if task is None:
            return Source(parts, place, stem, dicom=dicom, person=person)
        below = parts[0].parent.relative_to(task.images)
        own = (below if dicom else below / stem).as_posix()
        labels = task.labels or {}
        key = own if own in labels else CHANNEL.sub("", own)
        if key != own:
            person = person or f"case:{key}"
        label, problem = labels.get(key, ()), None
        if label and task.used.setdefault(key, own) != own:
            label, problem = (), ("extra_channel", "only the first channel of a case is used, and this is another one")
        elif not label and task.labels is not None:
            problem = ("no_label", "no label of the task has this image's name")
        return Source(
            parts,
            place,
            stem,
            dicom=dicom,
            label=label,
            person=person,
            classes=task.classes,
            modality=task.modality,
            problem=problem,
        )

    def _headers(self, paths: list[Path]) -> list[dict[str, str] | None]:
        """Headers of possible DICOM files, read apart; a file that breaks its reader counts as unreadable."""
        if len(paths) > HEADERS_AT_ONCE:
            return self._headers(paths[:HEADERS_AT_ONCE]) + self._headers(paths[HEADERS_AT_ONCE:])
        if not paths:
            return []
        try:
            return run_isolated(read_headers, ([str(path) for path in paths],), self.seconds, self.gigabytes)
        except DataError:
            if len(paths) == 1:
                return [None]
            half = len(paths) // 2
            return self._headers(paths[:half]) + self._headers(paths[half:])


def _volumes(files: Sequence[Path]) -> tuple[list[tuple[Path, ...]], list[Path]]:
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


def _stem(path: Path) -> str:
    """File name without its ending."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def _is_dicom(path: Path) -> bool | None:
    """True for DICOM by magic or name, None if it may be DICOM without preamble, False otherwise."""
    if path.name.startswith("."):
        return False
    try:
        with path.open("rb") as handle:
            start = handle.read(132)
    except OSError:
        start = b""
    if start[128:] == b"DICM" or suffix_of(path) in DICOM_SUFFIXES:
        return True
    return None if start.startswith(DICOM_STARTS) else False
