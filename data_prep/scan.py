"""What happens to one scan in a process of its own: read, check, measure, write."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import RulesConfig
from data_prep.labels import to_label_map
from data_prep.rules import first_reason
from data_prep.rules.scan import Scan
from voxscale.contract import PERCENTILES, foreground_threshold
from voxscale.errors import DataError
from voxscale.io import load_file
from voxscale.io.dicom import load_series
from voxscale.io.storage import Raw
from voxscale.store import Entry, write_volume
from voxscale.volume import LabelMap, Modality, Volume


@dataclass(frozen=True, slots=True)
class Job:
    """One scan to take in.

    Attributes:
        key: Its id.
        files: Its files.
        dicom: Whether they are slices of a DICOM series.
        label: File of its label.
        modality: Declared modality, for files that do not state it.
        subject: Keyed hash of the patient.
        classes: Declared names of label values.
        rules: Thresholds of the quality rules.
        store: Where to write it.
    """

    key: str
    files: tuple[Path, ...]
    dicom: bool
    label: Path | None
    modality: Modality | None
    subject: str
    classes: dict[int, str]
    rules: RulesConfig
    store: Path


def take_in(job: Job) -> dict[str, Any]:
    """Read, check, measure and write one scan.

    Returns:
        Its ledger entry, as plain values.

    Raises:
        DataError: With the reason why it is rejected.
        OSError: If the store cannot be written.
    """
    volume, modality_from = _read(job)
    values = _values(volume)
    raw = None if job.label is None else _read_label(job.label)
    reason = first_reason(Scan(volume, values, raw, job.classes), job.rules)
    if reason is not None:
        raise DataError(reason[1], reason[0])
    label = None if raw is None else to_label_map(raw)
    entry = measure(volume, values, label, job.subject, modality_from)
    return asdict(write_volume(job.store, job.key, volume, label, entry, job.classes))


def _read(job: Job) -> tuple[Volume, str]:
    """The scan, and what its modality was learnt from."""
    if job.dicom:
        raw, modality = load_series(job.files)
        return raw.volume(modality), "header"
    return load_file(job.files[0]).volume(job.modality), "values" if job.modality is None else "config"


def _read_label(path: Path) -> Raw:
    try:
        return load_file(path)
    except DataError as error:
        raise DataError(f"label: {error}", error.reason) from None


def _values(volume: Volume) -> NDArray[np.float32]:
    """`Volume.values`, slice by slice to save memory."""
    values = np.empty(volume.voxels.shape, dtype=np.float32)
    for row, stored in zip(values, volume.voxels, strict=True):
        row[...] = stored.astype(np.float64) * volume.slope + volume.intercept
    return values


def measure(
    volume: Volume, values: NDArray[np.float32], label: LabelMap | None, subject: str, modality_from: str
) -> Entry:
    """Compute the ledger entry of a scan.

    Args:
        volume: The scan.
        values: (z, y, x), its values.
        label: Its label.
        subject: Keyed hash of the patient.
        modality_from: `header`, `config` or `values`.
    """
    z, y, x = values.shape
    found = np.percentile(values, PERCENTILES)
    percentiles = {str(name): float(value) for name, value in zip(PERCENTILES, found, strict=True)}
    body = values > foreground_threshold(volume.modality, percentiles)
    box_z, box_y, box_x = (_range(np.asarray(body.any(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    counts = None if label is None else np.bincount(label.voxels.reshape(-1))
    return Entry(
        subject=subject,
        modality=volume.modality,
        modality_from=modality_from,
        shape=(z, y, x),
        spacing=volume.spacing,
        affine=volume.affine.tolist(),
        dtype=volume.voxels.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        percentiles=percentiles,
        foreground_box=(box_z, box_y, box_x),
        foreground=float(body.mean()),
        label=None if counts is None else {str(v): int(n) for v, n in enumerate(counts) if v and n},
    )


def _range(present: NDArray[np.bool_]) -> tuple[int, int]:
    """Half-open range of the true places; all places if there are none."""
    places = np.flatnonzero(present)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(present))
