"""From an input to what its reader process is told: patient, classes, settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import IngestConfig
from data_prep.discover import Discovery, Source
from data_prep.ids import Subjects, keyed_hash, part_id
from data_prep.privacy.dates import day_number
from data_prep.scan import Identity, Job
from data_prep.structures import assign_values, class_name

UNDECLARED = 128
"""Lowest class value of named structures where other labels of the same run number their classes without names."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """Makes the jobs of one run on one store.

    Attributes:
        store: The store's folder.
        scratch: Folder for unfinished scans.
        settings: How to read and what to accept.
        key: The store's secret key.
        subjects: Which patient a file belongs to.
        names: Names of structures by what files call them.
        values: Class value of each structure's name.
    """

    store: Path
    scratch: Path
    settings: IngestConfig
    key: bytes
    subjects: Subjects | None
    names: Mapping[str, str]
    values: Mapping[str, int]

    def subject(self, source: Source, key: str) -> str | None:
        """Name of the patient, not yet hashed; None if the subject setting does not know it."""
        if self.subjects is not None and not (source.dicom and source.person):
            return self.subjects.find(source.stem, source.place)
        return source.person or f"file:{key}"

    def numbers(self, parts: int, labelled: bool) -> list[int]:
        """Which volumes of an input are taken: the first, and others evenly spread."""
        most = 1 if labelled else max(1, min(self.settings.volumes, parts))
        return [number * parts // most for number in range(most)]

    def job(self, source: Source, key: str, subject: str, part: int) -> Job:
        """What a reader process needs to know of a volume.

        Args:
            source: The input.
            key: Its id.
            subject: Its patient.
            part: Number of the volume in the input.
        """
        hidden = keyed_hash(self.key, subject)
        study, series = (None if uid is None else keyed_hash(self.key, uid) for uid in (source.study, source.series))
        names = {each.number: class_name(each, self.key, self.names) for each in source.label_names}
        return Job(
            key=part_id(key, part) if part else key,
            files=source.files,
            dicom=source.dicom,
            part=part,
            several=self.settings.volumes > 0,
            label=source.label,
            label_format=source.label_format,
            label_values={number: self.values[name] for number, name in names.items()},
            dataset=self.settings.dataset,
            modality=self.settings.modality or source.modality,
            identity=Identity(hidden, study, series, day_number(self.key, subject, source.date)),
            image_class=source.image_class,
            classes={self.values[name]: name for name in names.values()} or source.classes,
            read=self.settings.read,
            rules=self.settings.rules,
            privacy=self.settings.privacy,
            store=self.store,
            scratch=self.scratch,
        )


def structure_values(
    found: Discovery, known: Mapping[int, str], key: bytes, names: Mapping[str, str]
) -> dict[str, int]:
    """Class value of every named structure of DICOM-SEG, RTSTRUCT and mask folders.

    Args:
        found: All inputs.
        known: Classes that the store has, or will have from the tasks of this run.
        key: The store's secret key.
        names: Names of structures by what files call them.
    """
    structures = {class_name(each, key, names) for source in found.sources for each in source.label_names}
    numbered = any(s.label and s.label_format == "file" and not s.classes for s in found.sources)
    return assign_values(structures, known, UNDECLARED if numbered else 1)
