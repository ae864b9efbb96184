"""The steps a volume goes through, and hashes of what each depends on: what is redone when a setting changes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from data_prep.scan import Job
from voxscale.config import config_hash
from voxscale.errors import DataError
from voxscale.io import suffix_of

VERSION = {"read": 1, "rules": 1, "privacy": 1, "write": 5}
"""Raised by whoever changes the code of a step so that its results change (a picture belongs to `privacy`)."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "read": ("dicom", "part", "several", "label_format", "label_values", "modality", "read"),
    "rules": ("classes", "rules"),
    "privacy": ("privacy",),
    "write": ("dataset", "identity", "image_class", "classes"),
}
"""What of a job each step depends on, beyond the bytes of its files."""
ELSEWHERE = ("key", "files", "label", "store", "scratch", "ingest")
"""What of a job no result depends on beyond the fields of the steps: its id stands for its bytes, places are only
places, and `ingest` is the hash of the steps."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "read": ("read",),
    "rules": ("read", "rules", "privacy"),
    "privacy": ("read", "rules", "privacy"),
    "write": ("read", "rules", "privacy", "write"),
}
"""The steps that decide a volume which ends at a step; what a rule rejects is shown only if the gate lets it."""

LIMITS = {"timeout": "seconds", "out_of_memory": "gigabytes"}
"""Reasons that a higher limit may undo."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one volume.

    Attributes:
        row: `status`, `rule`, `reason`, `notes`, `thumbnail` and `entry` of its row in the ledger.
        parts: Volumes of its input.
        steps: Hash of every step that decided it; none if it was decided without reading.
        limit: Seconds or gigabytes that it did not keep to.
    """

    row: Row
    parts: int = 1
    steps: Mapping[str, str] | None = None
    limit: float | None = None

    @property
    def writes(self) -> bool:
        """Whether files of the store belong to it."""
        return self.row["status"] == "accepted" or bool(self.row["thumbnail"])


def verdict(status: str, rule: str | None, reason: str | None) -> Row:
    """The row of a volume that is not accepted."""
    return {"status": status, "rule": rule, "reason": reason, "notes": [], "thumbnail": False, "entry": None}


def outcome_of(told: Mapping[str, Any], parts: int, steps: Mapping[str, str]) -> Outcome:
    """What the reader process told of a volume.

    Args:
        told: As `data_prep.scan.take_in` returns it.
        parts: Volumes of its input.
        steps: Hashes of all steps.
    """
    status = "rejected" if "rule" in told else "accepted"
    row = verdict(status, told.get("rule"), told.get("reason"))
    row |= {"notes": told["notes"], "thumbnail": told["thumbnail"], "entry": told.get("entry")}
    return Outcome(row, parts, {name: steps[name] for name in NEEDS[told["step"]]})


def outcome_of_crash(error: DataError, parts: int, steps: Mapping[str, str], limits: Mapping[str, float]) -> Outcome:
    """A volume whose reader process did not end well; which step it was in is not known."""
    row = verdict("rejected", error.reason, str(error))
    return Outcome(row, parts, steps, limits.get(LIMITS.get(error.reason, "")))


def holds(
    steps: Mapping[str, str], limit: float | None, rule: str | None, now: Mapping[str, str], limits: Mapping[str, float]
) -> bool:
    """Whether a result still is what reading again would give.

    Args:
        steps: Hashes of the steps that decided it.
        limit: The limit it did not keep to.
        rule: Why it is rejected.
        now: Hashes of all steps under the settings of now.
        limits: The limits of now, by name.
    """
    same = bool(steps) and all(now[name] == value for name, value in steps.items())
    return same and (limit is None or limits[LIMITS[rule or ""]] <= limit)


def step_hashes(job: Job) -> dict[str, str]:
    """Hash of each step: its version, its settings and what it is told of the input."""
    return {name: _hash_of(name, job) for name in FIELDS}


def made_by(steps: Mapping[str, str]) -> str:
    """One hash of all steps, which scans and bricks carry."""
    return config_hash(dict(steps))


def made_of(steps: Mapping[str, str]) -> int:
    """The same as a number of 48 bits."""
    return int(made_by(steps), 16)


def _hash_of(name: str, job: Job) -> str:
    values: dict[str, Any] = {"version": VERSION[name]}
    for field in FIELDS[name]:
        value = getattr(job, field)
        if field == name:
            value = _settings_hash(value)
        elif field == "identity":
            value = asdict(value)
        elif isinstance(value, Mapping):
            value = sorted(value.items())
        values[field] = value
    if name == "read":
        # Readers are chosen by endings.
        values["suffixes"] = [[] if job.dicom else suffix_of(job.files[0]), [suffix_of(path) for path in job.label]]
    return config_hash(values)


@lru_cache(maxsize=64)
def _settings_hash(settings: Any) -> str:
    return config_hash(settings)
