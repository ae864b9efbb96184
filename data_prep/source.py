"""`Source` and `Discovery`: what was found, before anything of it is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
