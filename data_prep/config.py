"""Settings of data preparation, each with its range."""

import re
from dataclasses import field
from typing import Literal, get_args

from data_prep.privacy.config import PrivacyConfig
from voxscale.config import config, require
from voxscale.io.loaded import ReadConfig
from voxscale.volume import MODALITIES, Modality

Labels = Literal["use", "ignore"]
Duplicates = Literal["mark", "off"]


@config
class RulesConfig:
    """Thresholds of the quality rules; see `data_prep.rules`.

    Attributes:
        min_slices: Fewest voxels along each axis of a volume.
        min_pixels: Fewest pixels along each side of a 2D image.
        max_padding: Largest share of voxels that lie outside the scan (one constant value around it).
        min_extent: Smallest field of view along each axis in mm.
        spacing: Smallest and largest voxel spacing along each axis in mm.
        max_spacing_ratio: Largest ratio of the largest to the smallest spacing of a scan.
        label_like: Smallest share of equal neighbours that makes whole numbers from 0 to 255 a segmentation
            instead of a scan; above 1 accepts every image.
        hu_low: Lowest plausible 0.5th percentile of a CT in HU (padding goes down to about -3000).
        hu_median: Highest plausible median of a CT in HU (higher: the intercept is missing).
        hu_high: Lowest and highest plausible 99.5th percentile of a CT in HU (lower: nothing but air).
        grid_tolerance: Farthest a corner of a label may lie from its scan's corner in mm.
    """

    min_slices: int = 8
    min_pixels: int = 16
    max_padding: float = 0.98
    min_extent: float = 16.0
    spacing: tuple[float, float] = (0.05, 20.0)
    max_spacing_ratio: float = 32.0
    label_like: float = 0.9
    hu_low: float = -5000.0
    hu_median: float = 500.0
    hu_high: tuple[float, float] = (-500.0, 20000.0)
    grid_tolerance: float = 0.01

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(self.min_slices >= 1, "rules.min_slices", "at least 1", self.min_slices)
        require(self.min_pixels >= 1, "rules.min_pixels", "at least 1", self.min_pixels)
        require(0 < self.max_padding <= 1, "rules.max_padding", "above 0 and at most 1", self.max_padding)
        require(self.min_extent >= 0, "rules.min_extent", "at least 0 mm", self.min_extent)
        require(0 < self.spacing[0] < self.spacing[1], "rules.spacing", "two rising positive mm values", self.spacing)
        require(self.max_spacing_ratio >= 1, "rules.max_spacing_ratio", "at least 1", self.max_spacing_ratio)
        require(self.label_like > 0, "rules.label_like", "positive", self.label_like)
        require(self.hu_high[0] < self.hu_high[1], "rules.hu_high", "two rising HU values", self.hu_high)
        require(self.grid_tolerance >= 0, "rules.grid_tolerance", "at least 0 mm", self.grid_tolerance)


@config
class IngestConfig:
    """How raw scans become a store.

    Attributes:
        dataset: Name of the data set that these scans belong to, to weight them by when training: letters, digits,
            - and _.
        modality: Modality of every scan whose file does not state it; None looks for it in `dataset.json` of
            the task, then guesses it from the values.
        labels: `use` pairs the images of a task with its labels. `ignore` takes every image alone, for scans to
            pretrain on: folders `labels`, `labelsTr` and `labelsTs` beside image folders are left out, and
            `dataset.json` is read for the modality only.
        subject: A regular expression with one group, searched in the file name without its ending, or the path
            of a CSV file with columns `file` (name, or path below the source folder) and `subject`. None makes
            each file a subject of its own, but takes the case of nnU-Net names. DICOM series always take their
            PatientID, else their study.
        volumes: Most volumes taken from an input that holds several (time points, echoes, phases), evenly spread
            over it; 1 takes the first, 0 rejects such inputs. A labelled input gives its first volume only.
        structures: CSV file with columns `name` and `class` that names structures of DICOM-SEG, RTSTRUCT and mask
            folders; names that neither it nor the built-in vocabulary knows become `structure-` and a keyed hash.
        duplicates: `mark` writes near-duplicate scans to `duplicates.json`; `off` does not look for them.
        workers: Scans read at the same time; None takes one per CPU that this process may use.
        seconds: Time limit for one scan.
        gigabytes: Memory limit for one scan.
        read: What readers may mend.
        rules: Thresholds of the quality rules.
        privacy: The privacy gate.
    """

    dataset: str = "main"
    modality: Modality | None = None
    labels: Labels = "use"
    subject: str | None = None
    volumes: int = 4
    structures: str | None = None
    duplicates: Duplicates = "mark"
    workers: int | None = None
    seconds: float = 600.0
    gigabytes: float = 16.0
    read: ReadConfig = field(default_factory=ReadConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        named = re.fullmatch("[A-Za-z0-9_-]+", self.dataset) is not None
        require(named, "ingest.dataset", "made of letters, digits, - and _", self.dataset)
        choices = get_args(Labels)
        require(self.labels in choices, "ingest.labels", "known", self.labels, choices)
        require(self.modality in (None, *MODALITIES), "ingest.modality", "known", self.modality, MODALITIES)
        choices = get_args(Duplicates)
        require(self.duplicates in choices, "ingest.duplicates", "known", self.duplicates, choices)
        require(self.volumes >= 0, "ingest.volumes", "at least 0", self.volumes)
        require(self.workers is None or self.workers >= 1, "ingest.workers", "at least 1", self.workers)
        require(0 < self.seconds <= 1e6, "ingest.seconds", "positive and at most 1000000", self.seconds)
        require(1 <= self.gigabytes <= 1e6, "ingest.gigabytes", "1 to 1000000", self.gigabytes)
