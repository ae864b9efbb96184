"""What went wrong while data were loaded: written to the run's folder, told once, and stopped when it is too much."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxscale.batch import Batch
from voxscale.errors import DataError, remedy
from voxscale.files import append_line
from voxscale.loader import Event

log = logging.getLogger("voxscale")

FREE = 10
"""Samples that may be replaced before their share counts."""


def note(path: Path, row: dict[str, Any]) -> None:
    """Append an incident to a file; where that cannot be written a run goes on, as the log has told of it too."""
    try:
        append_line(path, row)
    except OSError as error:
        log.warning("%s could not be written: %s; %s", path.name, error.strerror or "", remedy(error))


class Incidents:
    """The incidents of one rank.

    Args:
        run: The run's folder, where `incidents-rank0.jsonl` and so on are; None keeps no file.
        rank: Of this process.
        share: Share of samples that may be replaced.
    """

    def __init__(self, run: Path | None, rank: int, share: float) -> None:
        self._file = None if run is None else run / f"incidents-rank{rank}.jsonl"
        self._rank, self._share = rank, share
        self.delivered = self.replaced = 0

    def record(self, event: Event) -> None:
        """Keep one incident.

        Raises:
            DataError: With reason `too_many_replaced`.
        """
        log.warning("data: rank %d: %s", self._rank, describe(event))
        if self._file is not None:
            note(self._file, {"rank": self._rank, **asdict(event)})
        if event.kind != "replaced":
            return
        self.replaced += 1
        if self.replaced > max(FREE, self._share * self.delivered):
            raise DataError(
                f"data must be readable; {self.replaced} samples had to be replaced while {self.delivered} were "
                f"delivered, more than loader.replaced={self._share:g} allows; see incidents-rank{self._rank}.jsonl, "
                "mend the data or raise it",
                "too_many_replaced",
            )

    def counting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, counted."""
        for batch in batches:
            self.delivered += len(set(batch.indices))
            yield batch


def describe(event: Event) -> str:
    """One line for the log."""
    where = f"sample {event.index}" if event.index >= 0 else "no sample"
    scan = f" of scan {event.volume}" if event.volume else ""
    if event.kind == "replaced":
        return f"{where}{scan} was replaced by another one ({event.reason})"
    how = {"worker_died": "died", "worker_hung": "hung", "worker_slow": "is waited for"}[event.kind]
    return f"loading process {event.worker} {how} at {where} ({event.reason})"
