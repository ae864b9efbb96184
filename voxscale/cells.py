"""How many bricks or scans of each group each unit of an order holds, as one table: an epoch's plan is made of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A table of what is not empty.

    Attributes:
        groups: Names of all groups, sorted.
        units: How many there are.
        table: (n, 3) unit, number of the group, and how many bricks or scans; by unit, then group.
    """

    groups: tuple[str, ...]
    units: int
    table: NDArray[np.int64]

    @staticmethod
    def of(units: Sequence[Mapping[str, int]]) -> "Cells":
        """The table of units that say how many they hold of each group."""
        groups = tuple(sorted({name for unit in units for name in unit}))
        number = {name: place for place, name in enumerate(groups)}
        rows = [(place, number[name], n) for place, unit in enumerate(units) for name, n in sorted(unit.items())]
        return Cells(groups, len(units), np.array(rows, dtype=np.int64).reshape(-1, 3))

    @property
    def totals(self) -> dict[str, int]:
        """How many there are of each group, in the order in which the groups first appear."""
        group, count = self.table[:, 1], self.table[:, 2]
        sums = np.zeros(len(self.groups), dtype=np.int64)
        np.add.at(sums, group, count)
        first = np.zeros(len(self.groups), dtype=np.int64)
        first[group[::-1]] = np.arange(len(group))[::-1]  # of several values for one place the last stays
        return {self.groups[place]: int(sums[place]) for place in np.argsort(first, kind="stable").tolist()}

    def packed(self) -> bytes:
        """The table as bytes."""
        return self.table.astype("<i4").tobytes()

    def checksum(self) -> int:
        """Of names, number of units and table."""
        return _checksum(self.groups, self.units, self.packed())

    @staticmethod
    def unpacked(groups: Sequence[str], units: int, data: bytes, checksum: int) -> "Cells":
        """The table that `packed` made bytes of.

        Raises:
            ValueError: If it is not what the checksum was made of.
        """
        if _checksum(groups, units, data) != checksum:
            raise ValueError("table of groups must be as it was written")
        return Cells(tuple(groups), units, np.frombuffer(data, "<i4").astype(np.int64).reshape(-1, 3))


def _checksum(groups: Sequence[str], units: int, data: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(json.dumps([list(groups), units]).encode()), data))
