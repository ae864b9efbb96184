"""What became of the inputs of an ingest."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from data_prep.ledger import Ledger
from data_prep.source import Discovery

log = logging.getLogger("voxscale")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the images; found = accepted + rejected + quarantined.

    Attributes:
        found: Images found.
        accepted: In the store.
        rejected: Unusable, with a reason in the ledger.
        quarantined: Usable perhaps, but not without a person's decision (duplicate, no label, no subject, extra
            channel).
        parts: Further volumes accepted from inputs that hold several; not part of `found`.
        orphan_labels: Labels without image.
        others: Files that are neither image nor label of one.
        files: Files by what they are: labels, DICOM-SEG, RTSTRUCT, sidecars and so on.
    """

    found: int = 0
    accepted: int = 0
    rejected: int = 0
    quarantined: int = 0
    parts: int = 0
    orphan_labels: int = 0
    others: int = 0
    files: dict[str, int] = field(default_factory=dict, compare=False)


def count(found: Discovery, ledger: Ledger) -> Counts:
    """What became of this run's sources, those settled earlier included."""
    rows = [ledger.rows.verdict(place) for source in found.sources for place in ledger.places(source)]
    images = [row.status for row in rows if row.kind == "image"]
    rules = Counter(f"{row.status} {row.rule}" for row in rows if row.rule is not None)
    for rule, count in rules.most_common():
        log.info("ingest: %d %s", count, rule)
    return Counts(
        found=len(images),
        accepted=images.count("accepted"),
        rejected=images.count("rejected"),
        quarantined=images.count("quarantined"),
        parts=sum(row.kind == "part" and row.status == "accepted" for row in rows),
        orphan_labels=sum(row.kind == "label" for row in rows),
        others=found.others,
        files=found.counts,
    )
