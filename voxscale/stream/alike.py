"""Graphs of samples that look alike: what graph matching needs, and an even shuffle does not give.

Second-order matching learns from telling near-duplicates apart (LVM-Med's graphs hold neighbouring slices of several
studies), but of a large set an even shuffle hardly ever puts two bricks of one scan into the same 16 samples. Here the
entries of a block are ordered so that they meet. What lies side by side in a unit is taken for alike: bricks of a tar
stand by scan, and from bottom to top within one. Copies of a scan are another matter, see `docs/duplicates.md`: no
match can tell them apart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from voxscale.config import config, require


@config
class AlikeConfig:
    """Which samples come in a row.

    Attributes:
        group: Samples of a graph: from each multiple of this number on, as many are of one dataset, modality and body
            part, as far as there are enough; 1 shuffles evenly.
        run: Entries of a graph that lie side by side in a tar, or are of one scan in a store.
    """

    group: int = 1
    run: int = 4

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(1 <= self.group <= 256, "alike.group", "1 to 256 samples", self.group)
        require(self.run >= 1, "alike.run", "at least 1", self.run)


@dataclass(frozen=True, slots=True)
class Graphs:
    """Entries that come in a row.

    Attributes:
        size: Entries of a graph.
        run: Entries of a graph that are neighbours.
        showings_apart: Whether neighbours are what lies side by side, and not the showings of one thing.
    """

    size: int
    run: int
    showings_apart: bool


def graphs_of(config: AlikeConfig, patches: int, *, showings_apart: bool) -> Graphs | None:
    """What the order of an epoch is told; None to shuffle evenly.

    Args:
        config: Which samples come in a row.
        patches: Samples of an entry.
        showings_apart: See `Graphs`.
    """
    return None if config.group == 1 else Graphs(config.group // patches, config.run, showings_apart)


def by_graphs(
    rows: Int64[np.ndarray, "n 4"], graphs: Graphs, first: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Order the entries of a block so that entries that are alike come in a row.

    Runs of neighbours are cut from each group of each unit, shuffled within their group, and put one after the other;
    of that, pieces as long as a graph are shuffled. Where a block ends within a graph, the next block fills it up.

    Args:
        rows: Unit, group, place and repeat of each entry.
        graphs: How many come in a row.
        first: Entries that belong to a graph which an earlier block began.
        generator: Of the order.

    Returns:
        The same rows in another order.
    """
    unit, kind, place, repeat = rows.T
    within = (place, repeat) if graphs.showings_apart else (repeat, place)
    rows = rows[np.lexsort((*within, unit, kind))]
    new_cell = np.ones(len(rows), dtype=bool)
    new_cell[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    cell = np.cumsum(new_cell) - 1
    shift = generator.integers(graphs.run, size=len(rows))[cell]  # else the same ones would meet in every epoch
    number = (np.arange(len(rows)) - np.flatnonzero(new_cell)[cell] + shift) // graphs.run
    new_run = new_cell.copy()
    new_run[1:] |= number[1:] != number[:-1]
    of_run = generator.permutation(len(rows))[np.cumsum(new_run) - 1]
    of_kind = generator.permutation(int(rows[:, 1].max(initial=0)) + 1)[rows[:, 1]]
    rows = rows[np.lexsort((of_run, of_kind))]  # stable: a run keeps its order
    stop = first + max(0, len(rows) - first) // graphs.size * graphs.size
    whole = generator.permutation(rows[first:stop].reshape(-1, graphs.size, 4))
    return np.concatenate([rows[:first], whole.reshape(-1, 4), rows[stop:]])
