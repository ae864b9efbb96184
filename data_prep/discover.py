"""Finding scans: walks folders in a fixed order and says what belongs together.

Slightly above 300 lines because all layouts share one walk, whose order is the ledger's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep import bids, totalsegmentator
from data_prep.config import Labels
from data_prep.files import files_below, is_dicom, is_special, sort_pictures, sort_volumes, stem_of, what_is
from data_prep.labels import read_class_table, read_modality, read_task
from data_prep.series import Drawn, Header, Reader, Series, link
from data_prep.source import Discovery, Source
from voxscale.config import require
from voxscale.errors import ConfigError, DataError
from voxscale.volume import Modality

__all__ = ["Discovery", "Source", "discover"]

TASK_FOLDERS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
"""Folder of images and folder of labels of a task."""

CHANNEL = re.compile(r"_\d{4}$")
"""nnU-Net's channel number at the end of an image's name."""

HUNG = ("timeout", "its header takes too long to read")
"""Of a file that hangs the reader of headers: its pixels are not tried, which would cost as long again."""

CLASS_TABLE = "labels.csv"
"""Table of image classes beside a folder `images`: columns file, label and perhaps label_name."""


@dataclass(slots=True)
class _Task:
    """A folder of images with its folder of labels, while it is walked.

    Attributes:
        images: The folder of images.
        labels: Files of each label by the case's name; None if labels are ignored.
        classes: Declared names of label values.
        modality: Declared modality.
        used: Cases with an image, and the name of the image that has the label.
        image_classes: Class of each image by its file name, of a task whose labels are classes.
    """

    images: Path
    labels: dict[str, tuple[Path, ...]] | None
    classes: dict[int, str]
    modality: Modality | None
    used: dict[str, str] = field(default_factory=dict)
    image_classes: dict[str, int] | None = None


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
        walk = _Walk(root, found, Reader(seconds, gigabytes), labels, begun=len(found.sources))
        walk.visit(root, None)
        walk.finish()
    return found


@dataclass(slots=True)
class _Walk:
    """The walk through one root; `seen` guards against links that lead in a circle.

    DICOM files are kept until the end, because a series may be spread over
    folders and its labels may lie anywhere: about 200 bytes a file.
    """

    root: Path
    found: Discovery
    reader: Reader
    labels: Labels
    seen: set[Path] = field(default_factory=set)
    bids: bool = False
    derivatives: Path | None = None
    begun: int = 0
    series: dict[tuple[str, str], tuple[Series, _Task | None]] = field(default_factory=dict)
    drawn: list[Drawn] = field(default_factory=list)

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
        for path in entries:
            if path.is_dir() and path.name.startswith("."):
                self._leave_out(path, "hidden")
        files = [path for path in entries if not path.is_dir() and not is_special(path)]
        self.found.count("special_files", sum(map(is_special, entries)))
        if any(path.name == bids.FILE for path in files) and folder == self.root:
            self.bids = True
            self.found.saw("bids")
        if totalsegmentator.is_case(folders, files):
            files = self._masked(folder, files, folders.pop(totalsegmentator.MASKS))
        if self.bids and folder == self.root and "derivatives" in folders:
            self.derivatives = folders.pop("derivatives")
        self._files(folder, files, task)
        self._folders(folder, folders, task)

    def _folders(self, folder: Path, folders: dict[str, Path], task: _Task | None) -> None:
        """Visit folders; those of a task in pairs."""
        if self.labels == "ignore" and not folders.keys().isdisjoint(TASK_FOLDERS):
            self._unlabelled(folder, folders, task)
            return
        table = folder / CLASS_TABLE
        if "images" in folders and "labels" not in folders and table.is_file() and self.labels == "use":
            self.found.saw("labels_csv")
            self.visit(folders.pop("images"), self._classed(folder, table))
        pairs = {i: j for i, j in TASK_FOLDERS.items() if i in folders and j in folders}
        if pairs:
            self.found.saw("nnunet" if "imagesTr" in pairs else "images_labels")
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
                self._leave_out(path, "labels")
            else:
                self.visit(path, task)

    def _leave_out(self, folder: Path, what: str) -> None:
        """Count the files of a folder that is not visited."""
        self.found.count(what, len(files_below(folder)))

    def _classed(self, folder: Path, table: Path) -> _Task:
        """A folder of images whose classes stand in a table."""
        classes, names = read_class_table(table)
        for value, name in names.items():
            if self.found.image_classes.setdefault(value, name) != name:
                raise DataError(f"image class {value} must have one name in all tables", "class_conflict")
        return _Task(folder / "images", None, {}, read_modality(folder), image_classes=classes)

    def _masked(self, folder: Path, files: list[Path], masks: Path) -> list[Path]:
        """Take a scan with one mask per class beside it; returns the other files."""
        self.found.saw("totalsegmentator")
        source, others = totalsegmentator.source_of(folder, files, masks, self.root)
        self.found.count("sidecars", others)
        if self.labels == "ignore":
            self.found.count("labels", len(source.label))
            source = replace(source, label=(), label_names=())
        self.found.sources.append(source)
        return [path for path in files if path not in source.files]

    def _task(self, images: Path, labels: Path | None) -> None:
        """Visit the images of a task, then report its labels without image."""
        classes, modality = read_task(images.parent)
        for value, name in classes.items():
            if self.found.classes.setdefault(value, name) != name:
                names = f"{self.found.classes[value]!r} and {name!r}"
                raise DataError(f"class {value} must have one name in all tasks, not {names}", "class_conflict")
        files = files_below(labels) if labels else []
        self.found.count("special_files", sum(map(is_special, labels.rglob("*"))) if labels else 0)
        volumes, rest = sort_volumes(files)
        pictures, rest = sort_pictures(rest)
        volumes = sorted([*volumes, *pictures])
        for path in rest:
            self.found.count(what_is(path))
        known: dict[str, tuple[Path, ...]] = {}
        for parts in volumes:
            assert labels is not None  # else there are no volumes
            known.setdefault((parts[0].parent.relative_to(labels) / stem_of(parts[0])).as_posix(), parts)
        task = _Task(images, known, classes, modality)
        self.visit(images, task)
        self._gather()  # the task's own DICOM series, before its labels are called orphans
        used = {known[case] for case in task.used}
        for parts in volumes:
            if parts not in used:
                reason = ("no_image", "no image of the task has this label's name")
                place = parts[0].relative_to(self.root).as_posix()
                self.found.sources.append(Source(parts, place, stem_of(parts[0]), kind="label", problem=reason))

    def _files(self, folder: Path, files: list[Path], task: _Task | None) -> None:
        """Sort the files of one folder into volumes, DICOM series, 2D images and others."""
        volumes, rest = sort_volumes(files)
        sources = [self._source(parts, task, stem_of(parts[0])) for parts in volumes]
        sure = [path for path in rest if is_dicom(path) is True]
        maybe = [path for path in rest if is_dicom(path) is None]
        dicom, known = False, set(sure)
        for path, header in zip(sure + maybe, self.reader.headers(sure + maybe), strict=True):
            if header is None and path in known:
                source = self._source((path,), task, folder.name, dicom=True)
                sources.append(replace(source, problem=HUNG) if path in self.reader.hung else source)
            elif header is None:
                self.found.count("others")
            else:
                dicom = True
                self._dicom(path, header, task)
        rest = [path for path in rest if path not in {*sure, *maybe}]
        # Pictures beside scans are previews; they are scans where nothing else is.
        if not volumes and not dicom:
            pictures, rest = sort_pictures(rest)
            sources += [self._source(parts, task, stem_of(parts[0])) for parts in pictures]
        for path in rest:
            self.found.count(what_is(path))
        self.found.sources += sorted(sources, key=lambda source: source.files)

    def _dicom(self, path: Path, header: Header, task: _Task | None) -> None:
        """Keep one DICOM file until all of its series are known."""
        match header["kind"]:
            case "image":
                uid = header["SeriesInstanceUID"]
                # Series without a UID are told apart by their folder; in a task the folder is the case.
                key = (uid, "" if uid and task is None else str(path.parent))
                self.series.setdefault(key, (Series(header), task))[0].files.append(path)
            case "seg" | "rtstruct" as kind:
                if self.labels == "use" and task is None:
                    self.drawn.append(Drawn(path, kind))
                else:
                    self.found.count(kind)
            case _:
                self.found.count("other_dicom")

    def _gather(self) -> None:
        """Turn the series found so far into sources, with the labels drawn on them."""
        sources = [self._one_series(series, task) for series, task in self.series.values()]
        sources.sort(key=lambda source: source.files)
        self.found.sources += link(sources, self.drawn, self.reader, self.root)
        self.series.clear()
        self.drawn.clear()

    def finish(self) -> None:
        """Report what only the end of the walk could tell."""
        self._gather()
        if self.derivatives is not None and self.labels == "ignore":
            self._leave_out(self.derivatives, "derivatives")
        elif self.derivatives is not None:
            mine = self.found.sources[self.begun :]
            self.found.sources[self.begun :], rest = bids.pair_labels(mine, self.derivatives)
            self.found.count("derivatives", len(rest))

    def _one_series(self, series: Series, task: _Task | None) -> Source:
        first = series.header
        names = {"patient": first["PatientID"], "study": first["StudyInstanceUID"]}
        person = next((f"{what}:{name}" for what, name in names.items() if name), None)
        files = tuple(sorted(series.files))
        source = self._source(files, task, files[0].parent.name, dicom=True, person=person)
        return replace(
            source,
            study=first["StudyInstanceUID"] or None,
            series=first["SeriesInstanceUID"] or None,
            date=first["StudyDate"] or None,
        )

    def _source(
        self, parts: tuple[Path, ...], task: _Task | None, stem: str, dicom: bool = False, person: str | None = None
    ) -> Source:
        """One image, with its label if it belongs to a task."""
        place = parts[0].relative_to(self.root).as_posix()
        if task is None:
            modality = None
            if self.bids:
                person = person or bids.subject_of(place)
                modality = bids.MODALITY.get(bids.read_name(stem).suffix)
            return Source(parts, place, stem, dicom=dicom, person=person, modality=modality)
        if task.image_classes is not None:
            value = task.image_classes.get(parts[0].name)
            problem = None if value is not None else ("no_label", "labels.csv does not name this image")
            return Source(parts, place, stem, image_class=value, modality=task.modality, problem=problem)
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
