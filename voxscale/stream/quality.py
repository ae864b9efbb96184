"""How well a stream mixes: how far apart neighbours end up, and how many people a batch shows, beside an ideal shuffle.

Neighbours are samples that show what lies together: the same brick, the same
person, the same tar. The ideal is a uniformly random order of the whole epoch.
Looked at are whole blocks from the start of an epoch, so the cost does not grow
with what there is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from voxscale.config import require
from voxscale.seed import rng

WINDOW = 20_000
"""Samples looked at, at least, if an epoch has as many; whole blocks are taken."""

Keys = Mapping[str, Int64[np.ndarray, " n"]]


@dataclass(frozen=True, slots=True)
class Apart:
    """Distances between a sample and the next one that shows the same, in samples; 1 is the very next one.

    Attributes:
        median: Of all distances.
        low: 5th percentile.
        least: The smallest one.
    """

    median: float
    low: float
    least: int


@dataclass(frozen=True, slots=True)
class Mixed:
    """Different ones among the samples of a global batch.

    Attributes:
        mean: Over the batches.
        least: In the batch that mixes least.
    """

    mean: float
    least: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a stream mixes; each pair is what was found, and the same in an ideal shuffle of the epoch.

    Attributes:
        samples: Samples looked at.
        epoch: Samples of an epoch.
        batch: Samples of a global batch.
        apart: Of each kind of neighbours; kinds of which no two samples show the same are left out.
        mixed: Of each kind.
    """

    samples: int
    epoch: int
    batch: int
    apart: dict[str, tuple[Apart, Apart]]
    mixed: dict[str, tuple[Mixed, Mixed]]


class Planned(Protocol):
    """A stream that can tell what its samples show without reading them."""

    seed: int

    def __len__(self) -> int:
        """Samples per epoch."""
        ...

    def neighbours(self, epoch: int, least: int) -> Keys:
        """What consecutive samples from an epoch's start show, see `measure`."""
        ...


def shuffle_quality(stream: Planned, batch: int, epoch: int = 0, least: int = WINDOW) -> Quality:
    """Measure how well an epoch of a stream mixes.

    Args:
        stream: Of shards or of a store.
        batch: Samples of a global batch.
        epoch: Which one.
        least: Samples to look at, at least.

    Raises:
        ConfigError: If the batch is empty.
        DataError: If an index that would name people is damaged in a store.
    """
    return measure(stream.neighbours(epoch, least), len(stream), batch, rng(stream.seed, "quality", epoch))


def measure(keys: Keys, epoch: int, batch: int, generator: np.random.Generator) -> Quality:
    """Measure how well consecutive samples mix.

    The ideal is drawn: the same samples at random places of the epoch for distances, and for batches random samples
    of an epoch that repeats, with other things of the same numbers, what was looked at. People who are also shown
    later in the epoch count as others there, so the ideal of batches is a little too good rather than too bad.

    Args:
        keys: Of each kind of neighbours, a number for what each sample shows, -1 if that is not known.
        epoch: Samples of the whole epoch.
        batch: Samples of a global batch; no more than the samples count.
        generator: Of the ideal order.

    Raises:
        ConfigError: If the batch is empty.
    """
    require(batch >= 1, "loop.batch", "at least 1", batch)
    n = len(next(iter(keys.values())))
    batch = min(batch, n)
    places = generator.choice(max(epoch, n), n, replace=False)
    drawn = np.stack([generator.choice(max(epoch, n), batch, replace=False) for _ in range(n // batch)])
    apart: dict[str, tuple[Apart, Apart]] = {}
    mixed: dict[str, tuple[Mixed, Mixed]] = {}
    for kind, key in keys.items():
        known = key >= 0
        found, ideal = distances(key[known], np.arange(n)[known]), distances(key[known], places[known])
        if len(found):
            apart[kind] = _apart(found), _apart(ideal)
        chosen = key[drawn % n]
        # As many of each as in what was looked at, but other ones in every repetition of it.
        others = np.where(chosen < 0, -1, chosen + (drawn // n) * (int(key.max(initial=0)) + 1))
        mixed[kind] = _mixed(key[: n // batch * batch].reshape(-1, batch)), _mixed(others)
    return Quality(n, epoch, batch, apart, mixed)


def distances(key: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distances of each sample to the next one with the same key; none for the last one of a key.

    Args:
        key: (n,) what each sample shows.
        places: (n,) where it comes.
    """
    order = np.lexsort((places, key))
    return np.diff(places[order])[np.diff(key[order]) == 0]


def _apart(found: NDArray[np.int64]) -> Apart:
    low, median = np.percentile(found, [5, 50]).tolist()
    return Apart(median, low, int(found.min()))


def _mixed(rows: NDArray[np.int64]) -> Mixed:
    """Different known keys in each row."""
    rows = np.sort(rows, axis=1)
    first = np.ones(rows.shape, dtype=bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    counts = (first & (rows >= 0)).sum(axis=1)
    return Mixed(float(counts.mean()), int(counts.min()))


def describe(found: Quality) -> str:
    """One line for the log."""
    batches = [
        f"{real.mean:.1f} {kind}s (at least {real.least}; ideal {ideal.mean:.1f})"
        for kind, (real, ideal) in found.mixed.items()
    ]
    apart = [
        f"{kind} {real.median:,.0f}, 5 % within {real.low:,.0f} (ideal {ideal.median:,.0f}, {ideal.low:,.0f})"
        for kind, (real, ideal) in found.apart.items()
    ]
    return (
        f"shuffle: a batch of {found.batch} mixes {', '.join(batches)}; median samples until the same "
        f"{'; '.join(apart) or 'comes: never'}; from {found.samples:,} of the {found.epoch:,} samples of an epoch"
    )
