"""`Source` and `Discovery`: what was found, before anything of it is read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxscale.io.structures import Structure
from voxscale.volume import Modality

LabelFormat = Literal["file", "masks", "seg", "rtstruct"]


@dataclass(frozen=True, slots=True)
class Source:
    """One input.

    Attributes:
        files: Its files, the one to open first.
        place: Path of the first file below its root, with slashes.
        stem: File name without its ending; for a DICOM series the folder's name.
        kind: `image`, or `label` for a label without image.
        dicom: Whether the files belong to a DICOM series.
        label: Files of its label, the one to open first.
        label_format: How the label is kept.
        label_names: Structures of a label that names them itself.
        person: Patient, study or case as the input itself names it.
        study: Study as the input names it.
        series: Series as the input names it.
        date: Date of the study, YYYYMMDD, as the input gives it.
        classes: Declared names of label values.
        image_class: Class of the whole image.
        modality: Declared by the task.
        problem: Rule and reason, if it is clear without reading that it cannot be used.
        mirrored: Whether its files are a mirror's, whose times name versions of objects and say nothing else.
        state: What `state_of` told before its bytes were hashed; None before anyone looked.
    """

    files: tuple[Path, ...]
    place: str
    stem: str
    kind: Literal["image", "label"] = "image"
    dicom: bool = False
    label: tuple[Path, ...] = ()
    label_format: LabelFormat = "file"
    label_names: tuple[Structure, ...] = ()
    person: str | None = None
    study: str | None = None
    series: str | None = None
    date: str | None = None
    classes: dict[int, str] = field(default_factory=dict)
    image_class: int | None = None
    modality: Modality | None = None
    problem: tuple[str, str] | None = None
    mirrored: bool = False
    state: Mapping[str, int | str] | None = None


@dataclass(slots=True)
class Discovery:
    """All that was found. Every file is part of a source (as image or label) or counted once in `counts`.

    Attributes:
        sources: Inputs in a fixed order.
        classes: Declared names of label values, of all tasks together.
        image_classes: Names of the classes of whole images.
        counts: Files that are neither image nor label of one, by what they are.
        layouts: Folders by the layout that they were recognised as.
    """

    sources: list[Source] = field(default_factory=list)
    classes: dict[int, str] = field(default_factory=dict)
    image_classes: dict[int, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    layouts: dict[str, int] = field(default_factory=dict)

    @property
    def others(self) -> int:
        """Files that are neither image nor label of one."""
        return sum(self.counts.values())

    def count(self, what: str, files: int = 1) -> None:
        """Count files that are no input."""
        if files:
            self.counts[what] = self.counts.get(what, 0) + files

    def saw(self, layout: str) -> None:
        """Count a folder of a layout."""
        self.layouts[layout] = self.layouts.get(layout, 0) + 1


def state_of(source: Source) -> dict[str, Any]:
    """What tells without reading that the files of an input are the same as before.

    Size and times of every file: one that is replaced by another of the same
    size and an older time of change of its bytes (`cp -p`, `rsync -t`) has a
    new time of change of its inode, which no tool can set. That time is new
    as well after `chmod` or a copy of the whole folder; then bytes are hashed
    once more, and nothing else is done. Of a mirror's file it says when it
    was fetched, so there it does not count.

    Args:
        source: The input.

    Returns:
        `files`, how many; `state`, a hash of what each of them tells.
    """
    told = hashlib.blake2b(digest_size=12)
    for file in (*source.files, *source.label):
        try:
            state = file.stat()
        except OSError:
            told.update(b"-")
            continue
        changed = 0 if source.mirrored else state.st_ctime_ns
        told.update(f"{state.st_size} {state.st_mtime_ns} {changed};".encode())
    return {"files": len(source.files) + len(source.label), "state": told.hexdigest()}
