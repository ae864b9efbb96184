"""Labelled samples beside the unlabelled ones of each step."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from pretrain.mixture import MixtureConfig
from pretrain.objectives.supervised import NAME
from pretrain.scene import Labelled
from pretrain.source import Source
from voxscale.batch import Batch
from voxscale.files import write_text
from voxscale.incidents import Incidents
from voxscale.loader import LoaderConfig, load
from voxscale.seed import derive
from voxscale.stream.labelled import LabelledStream

log = logging.getLogger("voxscale")

LEDGER = "labelled.jsonl"


def open_labelled(config: MixtureConfig, source: Source, seed: int) -> LabelledStream | None:
    """The labelled sets under the contract and patch of the unlabelled ones; None if no objective learns from labels.

    Raises:
        ConfigError: As `read_sets` and `LabelledStream` do.
        DataError: As they do.
    """
    if "supervised" not in config.active:
        return None
    own = config.supervised
    return LabelledStream(
        own.read(), source.patch, source.contract, own.stream, derive(seed, "labelled"), own.weights, NAME
    )


def write_ledger(stream: LabelledStream, run: Path) -> None:
    """Note which scans are left out, and why, and say what there is."""
    rows = [{"set": number, "id": key, "reason": reason} for number, key, reason in stream.dropped]
    write_text(run / LEDGER, "".join(json.dumps(row) + "\n" for row in rows))
    told = ", ".join(
        f"{cases} scans with {len(own)} classes" for cases, own in zip(stream.cases, stream.sets.annotated, strict=True)
    )
    log.info("pretrain: labelled sets: %s; %d scans left out, see %s", told, len(rows), LEDGER)


class LabelledBatches:
    """Labelled micro-batches, one for each unlabelled one, of the same sample indices.

    Args:
        stream: Where they come from.
        indices: As those of the unlabelled batches.
        config: How they are loaded.
        pin: Whether to copy into page-locked memory.
        incidents: Of the rank, which counts these samples as well.
    """

    def __init__(
        self,
        stream: LabelledStream,
        indices: Iterator[list[int]],
        config: LoaderConfig,
        pin: bool,
        incidents: Incidents,
    ) -> None:
        self._stream = stream
        self._batches = incidents.counting(load(stream, indices, config, pin, incidents.record))

    def beside(self, batch: Batch) -> Labelled:
        """The labelled samples that go with a batch, on its device."""
        own = next(self._batches).to(batch.voxels.device)
        assert own.indices == tuple(dict.fromkeys(batch.indices)), "labelled and unlabelled batches must be in step"
        return of_batch(self._stream, own)


def of_batch(stream: LabelledStream, batch: Batch) -> Labelled:
    """A batch of labelled samples with the set of each."""
    return Labelled(batch, tuple(map(stream.set_of, batch.indices)))
