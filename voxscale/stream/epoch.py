"""The order of samples: an epoch is a plan, a pure function of what there is, the seed and the epoch's number.

What there is comes in units: a tar of bricks, or a run of scans in the index.
An epoch shuffles the units, takes some of them at a time (a block), and
shuffles all entries of a block, evenly or by graphs of entries that are alike.
So reading stays with a few tars, and any place of an epoch is found without
the places before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.cells import Cells
from voxscale.config import require
from voxscale.seed import rng
from voxscale.stream.alike import Graphs, by_graphs
from voxscale.stream.weights import WeightsConfig, group_weights, round_systematically


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an epoch's plan.

    Attributes:
        unit: Number of the unit.
        group: Number of the group in the sorted list of all groups.
        place: Which brick of that group in the unit, in the unit's own order.
        repeat: Which showing of this brick in the epoch.
    """

    unit: int
    group: int
    place: int
    repeat: int


class Order:
    """The plans of all epochs.

    Args:
        units: Bricks of each group, of each unit, or their table.
        repeats: Mean showings of a brick in an epoch.
        mix: Units of a block.
        weights: Of the groups.
        seed: Of everything.
        graphs: Which entries come in a row, of which an epoch holds whole graphs; None shuffles evenly.
    """

    def __init__(
        self,
        units: Sequence[Mapping[str, int]] | Cells,
        repeats: float,
        mix: int,
        weights: WeightsConfig,
        seed: int,
        graphs: Graphs | None = None,
    ) -> None:
        cells = units if isinstance(units, Cells) else Cells.of(units)
        self.groups, self._cells = list(cells.groups), cells.table
        found = group_weights(cells.totals, weights)
        each = np.array([found[name] for name in self.groups])
        self._expected = self._cells[:, 2] * each[self._cells[:, 1]] * repeats
        self._first = np.searchsorted(self._cells[:, 0], np.arange(cells.units + 1))
        self._units, self._mix, self._seed, self._graphs = cells.units, mix, seed, graphs
        if graphs is not None:  # so that graphs of all epochs begin at multiples of their size
            total = self._expected.sum()
            self._expected = self._expected * (max(1, round(total / graphs.size)) * graphs.size / total)
        self.length = int(round_systematically(self._expected, 0.0).sum())
        require(self.length > 0, "stream.repeats", "large enough for one sample an epoch", repeats)
        self._start()

    def _start(self) -> None:
        self._epoch: Any = lru_cache(maxsize=2)(self._make_epoch)
        self._block: Any = lru_cache(maxsize=4)(self._make_block)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_epoch", "_block")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def entry(self, epoch: int, place: int) -> Entry:
        """The entry at a place of an epoch.

        Args:
            epoch: From 0.
            place: From 0, below `length`.
        """
        _, _, starts = self._epoch(epoch)
        # Of blocks that show nothing, and so begin where the next one does, the last one is found.
        block = int(np.searchsorted(starts, place, side="right")) - 1
        unit, group, brick, repeat = self._block(epoch, block)[place - int(starts[block])].tolist()
        return Entry(unit, group, brick, repeat)

    def spare(self, epoch: int, place: int, choice: int) -> Entry:
        """The entry that stands in for a damaged one: another of the same epoch, drawn from its place."""
        return self.entry(epoch, int(rng(self._seed, "spare", epoch, place, choice).integers(self.length)))

    def rows(self, epoch: int, least: int) -> NDArray[np.int64]:
        """Entries of whole blocks from an epoch's start, in order.

        Args:
            epoch: From 0.
            least: Entries, at least, if the epoch has as many.

        Returns:
            (n, 4) unit, group, place and repeat of each.
        """
        blocks = -(-self._units // self._mix)
        found: list[NDArray[np.int64]] = []
        while len(found) < blocks and sum(map(len, found)) < least:
            found.append(self._block(epoch, len(found)))
        return np.concatenate(found)

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Showings of each cell, the order of units, and the place where each block begins."""
        generator = rng(self._seed, "epoch", epoch)
        shown = round_systematically(self._expected, float(generator.random()))
        units = generator.permutation(self._units)
        sums = np.concatenate([[0], np.cumsum(shown)])
        per_unit = (sums[self._first[1:]] - sums[self._first[:-1]])[units]
        begins = np.concatenate([[0], np.cumsum(per_unit)[:-1]])
        return shown, units, begins[:: self._mix]

    def _make_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Shuffled entries of one block, as rows (unit, group, place, repeat)."""
        shown, units, starts = self._epoch(epoch)
        rows = [np.zeros((0, 4), dtype=np.int64)]  # units may all be empty, such as runs of scans that are 2D images
        for unit in units[block * self._mix : (block + 1) * self._mix].tolist():
            for cell in range(int(self._first[unit]), int(self._first[unit + 1])):
                _, group, bricks = self._cells[cell].tolist()
                rows.append(self._showings(epoch, unit, group, bricks, int(shown[cell])))
        every, generator = np.concatenate(rows), rng(self._seed, "block", epoch, block)
        if self._graphs is None:
            return every[generator.permutation(len(every))]
        return by_graphs(every, self._graphs, int(-starts[block] % self._graphs.size), generator)

    def _showings(self, epoch: int, unit: int, group: int, bricks: int, shown: int) -> NDArray[np.int64]:
        """Rows of one cell: every brick equally often, some of them once more."""
        base, more = divmod(shown, bricks)
        extra = rng(self._seed, "extra", epoch, unit, group).permutation(bricks)[:more]
        times = np.full(bricks, base, dtype=np.int64)
        times[extra] += 1
        place = np.repeat(np.arange(bricks), times)
        repeat = np.arange(len(place)) - np.repeat(np.cumsum(times) - times, times)
        return np.stack([np.full_like(place, unit), np.full_like(place, group), place, repeat], axis=1)
