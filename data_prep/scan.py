"""What happens to one volume in a process of its own: read, check, pass the privacy gate, measure, write."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.audit import DESCRIPTOR
from data_prep.config import RulesConfig
from data_prep.descriptor import describe, sampled
from data_prep.labels import to_label_map
from data_prep.levels import levels_of
from data_prep.measure import Measured, measure
from data_prep.privacy.config import PrivacyConfig
from data_prep.privacy.gate import pass_gate
from data_prep.rules import first_reason
from data_prep.rules.scan import Scan
from data_prep.source import LabelFormat
from data_prep.sweep import THUMBNAILS
from data_prep.values import Values
from voxscale.entry import Entry, Privacy
from voxscale.errors import DataError
from voxscale.files import write_bytes
from voxscale.io import IMAGE_SUFFIXES, load_file, suffix_of
from voxscale.io.dicom import load_series
from voxscale.io.dicom_seg import load_seg
from voxscale.io.loaded import Loaded, ReadConfig
from voxscale.io.masks import load_masks
from voxscale.io.rtstruct import load_rtstruct
from voxscale.io.storage import Raw
from voxscale.kernel.filters import Planes, count_values, different
from voxscale.report.thumbnail import thumbnail
from voxscale.scan_folder import write_volume
from voxscale.volume import LabelMap, Modality, Volume


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose scan it is, in hashes and offsets only; see `voxscale.entry.Entry`."""

    subject: str
    study: str | None
    series: str | None
    day: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """One volume to take in.

    Attributes:
        key: Its id.
        files: Its files.
        dicom: Whether they belong to a DICOM series.
        part: Which volume of the input.
        several: Whether an input of several volumes is taken at all.
        label: Files of its label.
        label_format: How to read them.
        label_values: Class value of each structure, by the structure's number in its file.
        dataset: Name of the data set.
        modality: Declared modality, for files that do not state it.
        identity: Whose it is.
        image_class: Class of the whole image.
        classes: Declared names of label values.
        read: What readers may mend.
        rules: Thresholds of the quality rules.
        privacy: The privacy gate.
        store: Where to write it.
        scratch: Folder of the store's file system for what is not finished.
        ingest: Hash of all steps under these settings, see `voxscale.entry.Entry`.
    """

    key: str
    files: tuple[Path, ...]
    dicom: bool
    part: int
    several: bool
    label: tuple[Path, ...]
    label_format: LabelFormat
    label_values: Mapping[int, int]
    dataset: str
    modality: Modality | None
    identity: Identity
    image_class: int | None
    classes: dict[int, str]
    read: ReadConfig
    rules: RulesConfig
    privacy: PrivacyConfig
    store: Path
    scratch: Path
    ingest: str | None = None


def take_in(job: Job) -> dict[str, Any]:
    """Read, check, measure and write one volume.

    Returns:
        As plain values: the last `step` it went through (see `data_prep.steps`); `entry`, or `rule` and `reason`
        why it is rejected; `notes`; whether there is a `thumbnail`; `parts` of the input, if it could be read.

    Raises:
        OSError: If the store cannot be written.
    """
    told: dict[str, Any] = {"step": "read", "notes": [], "thumbnail": False}
    try:
        return told | _take_in(job, told)
    except DataError as error:
        return told | {"notes": [], "thumbnail": False, "rule": error.reason, "reason": str(error)}


def _take_in(job: Job, told: dict[str, Any]) -> dict[str, Any]:
    """The same; `told["step"]` is kept true, so that an error is known to be this step's."""
    loaded = load_series(job.files, job.part, job.read) if job.dicom else load_file(job.files[0], job.part)
    if loaded.parts > 1 and not job.several:
        raise DataError(f"input must hold one volume, not {loaded.parts}; set ingest.volumes", "several_volumes")
    volume = loaded.volume(job.modality)
    loaded = replace(loaded, raw=Raw(volume.voxels, volume.affine, volume.slope, volume.intercept))  # once in memory
    label, notes = _read_label(job, loaded.raw) if job.label else (None, ())
    values = Values(volume)
    levels = levels_of(volume.voxels, volume.slope, volume.intercept)
    told |= {"parts": loaded.parts, "notes": [*loaded.notes, *notes], "step": "rules"}
    reason = first_reason(Scan(volume, values, label, job.classes, loaded.spacing_known, levels), job.rules)
    if reason is not None:
        return told | {"rule": reason[0], "reason": reason[1], "thumbnail": _show_rejected(job, volume, values)}
    told["step"] = "privacy"
    passed = pass_gate(volume, values, job.privacy, in_place=True)
    told["step"] = "write"
    told["notes"] += passed.notes
    label_map, label = None if label is None else to_label_map(label), None  # of which one may be enough
    if passed.removed is not None:
        levels = levels_of(passed.volume.voxels, passed.volume.slope, passed.volume.intercept)
    measured = measure(passed.values, passed.volume.modality, levels)
    entry = entry_of(passed.volume, measured, label_map, job, loaded, passed.privacy)
    volume, every = passed.volume, sampled(passed.values)
    sample = levels if every == 1 else levels_of(volume.voxels[::every], volume.slope, volume.intercept)
    found = {DESCRIPTOR: describe(passed.values, volume.spacing, sample).to_bytes()}
    removed, picture = passed.removed, _picture(volume, passed.values)
    entry = write_volume(job.store, job.key, volume, label_map, entry, job.classes, removed, found, job.scratch)
    _show(job, picture)
    return told | {"entry": asdict(entry), "thumbnail": True}


def _read_label(job: Job, image: Raw) -> tuple[Raw, tuple[str, ...]]:
    """The label on the image's grid, and what was decided on the way."""
    try:
        match job.label_format:
            case "seg":
                found = load_seg(job.label[0], image, job.label_values)
            case "rtstruct":
                found = load_rtstruct(job.label[0], image, job.label_values)
            case "masks":
                found = load_masks(job.label, image, job.label_values)
            case "file":
                return _plain_label(job.label[0])
    except DataError as error:
        raise DataError(f"label: {error}", error.reason) from None
    claims = sum(found.overlaps.values())
    twice = (f"label: {claims} voxels are claimed by two structures; the later one has them",) if claims else ()
    return Raw(found.voxels, image.affine, 1.0, 0.0), (*found.notes, *twice)


def _plain_label(path: Path) -> tuple[Raw, tuple[str, ...]]:
    """A label map in a file of its own; masks drawn in black and white count as 0 and 1."""
    loaded = load_file(path)
    raw = loaded.raw
    if suffix_of(path) not in IMAGE_SUFFIXES:
        return raw, ()
    if raw.voxels.ndim == 4:
        if any((channel != raw.voxels[0]).any() for channel in raw.voxels[1:]):
            raise DataError("mask must be grey, not coloured", "label_values")
        raw = Raw(np.ascontiguousarray(raw.voxels[0]), raw.affine, raw.slope, raw.intercept)
    values = different(raw.voxels) * raw.slope + raw.intercept
    if values.tolist() in ([0.0, 255.0], [255.0]):
        white = (raw.voxels == (255 - raw.intercept) / raw.slope).astype(np.uint8)
        return Raw(white, raw.affine, 1.0, 0.0), ("label: white (255) counts as class 1",)
    return raw, ()


def _picture(volume: Volume, values: Planes) -> bytes:
    return thumbnail(values, volume.spacing, (-1000.0, 1000.0) if volume.modality == "CT" else None)


def _show(job: Job, picture: bytes) -> None:
    write_bytes(job.store / THUMBNAILS / f"{job.key}.png", picture, job.scratch)


def _show_rejected(job: Job, volume: Volume, values: Planes) -> bool:
    """A picture of what a rule rejects, if the privacy gate lets it be seen."""
    try:
        passed = pass_gate(volume, values, job.privacy)
    except DataError:
        return False
    if not passed.privacy.passed:
        return False
    _show(job, _picture(passed.volume, passed.values))
    return True


def entry_of(
    volume: Volume, measured: Measured, label: LabelMap | None, job: Job, loaded: Loaded, privacy: Privacy
) -> Entry:
    """Gather what the ledger keeps of a scan.

    Args:
        volume: The scan.
        measured: Of its values.
        label: Its label.
        job: Whose it is.
        loaded: What its reader told.
        privacy: Verdicts of the gate.
    """
    counts = None if label is None else count_values(label.voxels)
    stated = "values" if job.modality is None else "config"
    return Entry(
        **asdict(job.identity),
        dataset=job.dataset,
        modality=volume.modality,
        modality_from=stated if loaded.modality is None else "header",
        shape=volume.shape,
        channels=volume.channels,
        spacing=volume.spacing,
        spacing_known=loaded.spacing_known,
        affine=volume.affine.tolist(),
        dtype=volume.voxels.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        **{field.name: getattr(measured, field.name) for field in fields(measured)},
        label=None if counts is None else {str(v): int(n) for v, n in enumerate(counts) if v and n},
        image_class=job.image_class,
        technique=asdict(loaded.technique),
        privacy=privacy,
        part=loaded.part,
        parts=loaded.parts,
        ingest=job.ingest,
    )
