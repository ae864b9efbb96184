"""Labelled samples from several stores, each of which annotates classes of its own."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxscale.config import config_hash, require
from voxscale.contract import InputContract
from voxscale.entry import contents
from voxscale.errors import DataError
from voxscale.seed import derive, rng
from voxscale.store import open_store
from voxscale.stream.cases import CaseStream, CaseStreamConfig
from voxscale.stream.crop import Size
from voxscale.stream.interface import Sample

ALL = "*"
"""Declares all classes of a store."""


@dataclass(frozen=True, slots=True)
class LabelledSets:
    """What several stores annotate.

    Attributes:
        paths: The stores.
        classes: Names of the classes of all sets, in the order of their first mention; class 0 is the background.
        annotated: Of each set, the numbers of its classes among these, from 1.
        values: Of each set, the class of each value that its labels may hold.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    annotated: tuple[tuple[int, ...], ...]
    values: tuple[dict[int, int], ...]


def read_sets(paths: Sequence[Path], declared: Sequence[str], where: str) -> LabelledSets:
    """Read what the stores call their classes.

    Args:
        paths: The stores; classes of one name are one class.
        declared: Of each store, the names of the classes that it annotates, with commas between, or `*` for all
            that it knows; empty for `*` everywhere.
        where: Dotted name of the config, for errors.

    Raises:
        ConfigError: If there is no store, or a name is not one of the store's.
        DataError: If a store cannot be read.
    """
    require(len(paths) > 0, f"{where}.sets", "at least one store of labelled scans", paths)
    declared = tuple(declared) or (ALL,) * len(paths)
    require(len(declared) == len(paths), f"{where}.classes", f"one text for each of {len(paths)} sets", declared)
    names: list[str] = []
    values: list[dict[int, int]] = []
    for number, (path, text) in enumerate(zip(paths, declared, strict=True)):
        known = dict(sorted(open_store(path).classes.items()))
        chosen = list(known.values()) if text == ALL else [name.strip() for name in text.split(",")]
        for name in chosen:
            require(name in known.values(), f"{where}.classes[{number}]", "classes of its set", name, [*known.values()])
        names += [name for name in dict.fromkeys(chosen) if name not in names]
        values.append({value: names.index(name) + 1 for value, name in known.items() if name in chosen})
    require(0 < len(names) < 256, f"{where}.classes", "1 to 255 classes in all", len(names))
    annotated = tuple(tuple(sorted(set(one.values()))) for one in values)
    return LabelledSets(tuple(paths), tuple(names), annotated, tuple(values))


class LabelledStream:
    """One order over the cases of several stores.

    An epoch shows each set as often as it has cases, times its weight, in a random order; the cases
    of a set take turns. A sample depends on seed and index alone.

    Attributes:
        sets: What the stores annotate.
        dropped: Set, scan and reason of every scan that is left out.
        fingerprint: Hash of all that is read.
    """

    def __init__(
        self,
        sets: LabelledSets,
        patch: Size,
        contract: InputContract,
        config: CaseStreamConfig,
        seed: int,
        weights: Sequence[float] = (),
        where: str = "labelled",
    ) -> None:
        """Choose the cases.

        Args:
            sets: From `read_sets`.
            patch: Patch size (z, y, x) in voxels of the contract's spacing.
            contract: How scans become network input.
            config: How cases become samples.
            seed: Of everything.
            weights: Of each set; 1 where none are given.
            where: Dotted name of the config, for errors.

        Raises:
            ConfigError: If labels show a class that their set does not declare, or a weight is not positive.
            DataError: If a set has no labelled scan.
        """
        weights = tuple(weights) or (1.0,) * len(sets.paths)
        fits = len(weights) == len(sets.paths) and min(weights) > 0
        require(fits, f"{where}.weights", f"{len(sets.paths)} positive numbers", weights)
        self.sets, self.seed = sets, seed
        self.dropped: list[tuple[int, str, str]] = []
        self._streams: list[CaseStream] = []
        self._tables: list[NDArray[np.uint8]] = []
        read: dict[str, object] = {}
        for number, (path, values) in enumerate(zip(sets.paths, sets.values, strict=True)):
            cases = self._choose(number, path, values, patch[0] == 1, f"{where}.classes[{number}]", read)
            if not cases:
                raise DataError(f"{where}.sets[{number}] must hold labelled scans that fit the patch", "empty_split")
            own = derive(seed, "set", number)
            self._streams.append(CaseStream(path, cases, patch, contract, config, own))
            table = np.zeros(256, dtype=np.uint8)
            table[list(values)] = list(values.values())
            self._tables.append(table)
        self._shown = [max(1, round(w * len(s.cases))) for w, s in zip(weights, self._streams, strict=True)]
        self._ends = np.cumsum(self._shown)
        self.fingerprint = config_hash(read)

    def _choose(
        self, number: int, path: Path, values: dict[int, int], flat: bool, where: str, read: dict[str, object]
    ) -> list[str]:
        """Cases of one set; those left out are noted."""
        store, cases = open_store(path), list[str]()
        for key, entry in sorted(store.entries.items()):
            reason = ""
            if entry.label is None:
                reason = "it has no label"
            elif entry.channels != 1:
                reason = "it has colours"
            elif entry.planar and not flat:
                reason = "it is a 2D image"
            if reason:
                self.dropped.append((number, key, reason))
                continue
            shown = {int(value) for value, count in (entry.label or {}).items() if count and int(value)}
            more = sorted(store.classes.get(value, str(value)) for value in shown - values.keys())
            require(not more, where, "all classes that the labels of its set show", f"all but {', '.join(more)}")
            cases.append(key)
            read[f"{number}/{key}"] = contents(entry)
        return cases

    def __len__(self) -> int:
        """Samples per epoch."""
        return int(self._ends[-1])

    @property
    def cases(self) -> list[int]:
        """Cases of each set."""
        return [len(stream.cases) for stream in self._streams]

    def set_of(self, index: int) -> int:
        """The set that a global sample index shows."""
        return self._place(index)[0]

    def _place(self, index: int) -> tuple[int, int]:
        """Set, and number of the sample among those of the set."""
        epoch, rest = divmod(index, len(self))
        at = int(_permutation(self.seed, epoch, len(self))[rest])
        number = int(np.searchsorted(self._ends, at, side="right"))
        first = int(self._ends[number]) - self._shown[number]
        return number, epoch * self._shown[number] + at - first

    def subject(self, index: int, choice: int = 0) -> str:
        """Subject of that sample's case, or of a later choice's; people of different sets count as different."""
        number, own = self._place(index)
        return f"{number}/{self._streams[number].subject(own, choice)}"

    def sample(self, index: int, spare: int = 0) -> Sample:
        """One labelled patch, whose label holds classes of all sets; of a damaged case, one of another of its set."""
        number, own = self._place(index)
        (patch,), bad = self._streams[number].sample(own, spare)
        label = None if patch.label is None else self._tables[number][patch.label]
        told = [(volume, f"{reason}, set {number}") for volume, reason in bad]
        return [dataclasses.replace(patch, index=index, label=label)], told


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return rng(seed, "labelled", epoch).permutation(length)
