"""Unlabelled samples straight from a store: random boxes of random scans, for those who do not want to pack."""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.augment import spatial
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Patch
from voxscale.cells import Cells
from voxscale.config import config, require
from voxscale.contract import InputContract
from voxscale.entry import Entry, group_of
from voxscale.errors import DataError
from voxscale.folder import Access
from voxscale.index import ROWS, Index
from voxscale.pyramid import levels
from voxscale.seed import derive, rng
from voxscale.store import open_store
from voxscale.stream.alike import AlikeConfig, graphs_of
from voxscale.stream.crop import Size, intensity_scale, on_body, place, spans
from voxscale.stream.epoch import Order
from voxscale.stream.interface import Sample, first_intact
from voxscale.stream.weights import WeightsConfig
from voxscale.stream.wide import WideCrops, level_for, placed, widened


@config
class StoreStreamConfig:
    """How scans become samples.

    Attributes:
        views: Crops per sample, all from one scan.
        repeats: Mean samples of a scan per epoch.
        mix: Runs of 1024 scans that are shuffled together.
        foreground: Share of crops centred in the body; the others lie anywhere in the scan.
        weights: How often each group of scans is shown.
        alike: Which samples come in a row.
        access: How local files are read; `range` for network file systems.
        spatial: Zoom, mirroring and rotation of crops.
    """

    views: int = 2
    repeats: float = 4.0
    mix: int = 64
    foreground: float = 0.9
    weights: WeightsConfig = WeightsConfig()
    alike: AlikeConfig = AlikeConfig()
    access: Access = "map"
    spatial: SpatialConfig = SpatialConfig()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.views >= 1, "stream.views", "at least 1", self.views)
        require(0 < self.repeats <= 1e6, "stream.repeats", "positive and at most 1000000", self.repeats)
        require(self.mix >= 1, "stream.mix", "at least 1", self.mix)
        require(0 <= self.foreground <= 1, "stream.foreground", "in [0, 1]", self.foreground)


class StoreStream:
    """Samples from the volumes of a store, or its URL; 2D images are left out.

    Args:
        path: The store.
        patch: Patch size (z, y, x) in voxels of the contract's spacing.
        contract: How scans become network input.
        config: How scans become samples.
        seed: Of everything.
        wide: Crops that are read from coarser levels, if any are.
    """

    def __init__(
        self,
        path: Path,
        patch: Size,
        contract: InputContract,
        config: StoreStreamConfig,
        seed: int,
        wide: WideCrops | None = None,
    ) -> None:
        self.store, self.wide = open_store(path, config.access), wide
        self.patch, self.contract, self.config, self.seed = patch, contract, config, seed
        entries = self.store.entries
        # Without an index, as in a store that is being written, all entries are in memory anyhow.
        self._held = None if isinstance(entries, Index) else _runs(entries)
        cells = entries.cells if isinstance(entries, Index) else Cells.of([_counts(run) for run in self._held or ()])
        if not len(cells.table):
            raise DataError("store must hold at least one accepted volume", "empty_store")
        # Boxes of a scan are drawn anew for each showing, so its showings are what bricks are in a tar.
        graphs = graphs_of(config.alike, 1, showings_apart=False)
        self.order = Order(cells, config.repeats, config.mix, config.weights, seed, graphs)
        self._start()

    def _start(self) -> None:
        self._unit: Any = lru_cache(maxsize=4 * self.config.mix)(self._read_unit)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_unit"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _read_unit(self, number: int) -> dict[str, NDArray[np.uint64]]:
        """Ids of the volumes of each group in a row group of the index."""
        entries = self.store.entries
        if isinstance(entries, Index):
            ids = entries.ids(number)
            return {name: ids[rows] for name, rows in _rows_of(entries, number).items()}
        return {
            name: np.array([int(k, 16) for k, g in (self._held or [])[number] if g == name], np.uint64)
            for name in self.order.groups
        }

    def _subjects(self, number: int) -> dict[str, list[str]]:
        """Subjects of these volumes."""
        entries = self.store.entries
        if isinstance(entries, Index):
            subjects = entries.read(number, ["subject"]).column("subject").to_pylist()
            return {name: [subjects[row] for row in rows] for name, rows in _rows_of(entries, number).items()}
        run = (self._held or [])[number]
        return {name: [entries[k].subject for k, g in run if g == name] for name in self.order.groups}

    def neighbours(self, epoch: int, least: int) -> dict[str, NDArray[np.int64]]:
        """What consecutive samples from an epoch's start show, for `voxscale.stream.quality`.

        Args:
            epoch: From 0.
            least: Samples, at least.

        Returns:
            Numbers of scan, subject and run of the index, (n,) each.

        Raises:
            DataError: With reason `corrupt` if the index is damaged.
        """
        rows = self.order.rows(epoch, least)
        subject = np.zeros(len(rows), dtype=np.int64)
        people: dict[str, int] = {}
        for unit in np.unique(rows[:, 0]).tolist():
            here = np.flatnonzero(rows[:, 0] == unit)
            found = self._subjects(unit)
            for at, (_, group, number, _) in zip(here, rows[here].tolist(), strict=True):
                subject[at] = people.setdefault(found[self.order.groups[group]][number], len(people))
        scan = np.unique(rows[:, :3], axis=0, return_inverse=True)[1].reshape(-1)
        return {"scan": scan, "subject": subject, "run": rows[:, 0]}

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.order.length

    def volume(self, index: int, choice: int = 0) -> str:
        """Id of the scan that a global sample index shows, or of a later choice in its place."""
        epoch, where = divmod(index, len(self))
        entry = self.order.spare(epoch, where, choice) if choice else self.order.entry(epoch, where)
        return f"{int(self._unit(entry.unit)[self.order.groups[entry.group]][entry.place]):016x}"

    def subject(self, index: int, choice: int = 0) -> str:
        """Subject of that scan."""
        return self.store.entry(self.volume(index, choice)).subject

    def sample(self, index: int, spare: int = 0) -> Sample:
        """Views of one scan; of a damaged scan, those of another one."""

        def draw(choice: int) -> tuple[str, Any]:
            key = self.volume(index, choice)
            return key, lambda: self._views(key, index)

        return first_intact(draw, spare)

    def _views(self, key: str, index: int) -> list[Patch]:
        entry = self.store.entry(key)
        return [self._view(key, entry, index, view) for view in range(self.config.views)]

    def _view(self, key: str, entry: Entry, index: int, view: int) -> Patch:
        generator = rng(self.seed, "crop", index, view)
        drawn, factor = spatial.sample(generator, self.config.spatial), 1
        if self.wide is not None and view == self.wide.view:
            factor = self.wide.factor(index, derive(self.seed, "sample", index, 0))
            drawn, factor = widened(drawn, factor, self.patch, self.contract, entry.shape, entry.spacing)
        size = spatial.extent(drawn, self.patch, self.contract.spacing, entry.spacing)
        centre = place(generator, entry.shape, size)
        if entry.occupancy is not None and generator.random() < self.config.foreground:
            centre = on_body(generator, entry.occupancy, entry.shape, size)
        pyramid = levels(entry.shape, entry.spacing)
        level = level_for(factor, self.patch, self.contract, entry.spacing, pyramid)
        where = placed(drawn, self.patch, self.contract, entry.spacing, centre, level, pyramid[level])
        return Patch(
            voxels=self.store.read_of(key, entry, spans(where.box), level),
            label=None,
            matrix=where.matrix,
            scale=intensity_scale(entry, self.contract),
            seed=derive(self.seed, "sample", index, view),
            index=index,
            volume=key,
            removed=self.store.removed_of(key, entry, spans(where.box), level),
            mm=where.mm,
        )


def _rows_of(index: Index, number: int) -> dict[str, NDArray[np.int64]]:
    """Rows of the volumes of each group in a row group."""
    names = np.array(index.read(number, ["group"]).column("group").to_pylist(), dtype=object)
    return {str(name): np.flatnonzero(names == name) for name in {*names.tolist()} - {None}}


Run = list[tuple[str, str | None]]


def _runs(entries: Mapping[str, Entry]) -> list[Run]:
    """Ids and groups (None for 2D images) of runs of scans as long as the row groups of an index."""
    every = [
        (key, None if e.planar else group_of(e.dataset, e.modality, e.technique.get("body_part")))
        for key, e in entries.items()
    ]
    return [every[start : start + ROWS] for start in range(0, len(every), ROWS)]


def _counts(run: Run) -> dict[str, int]:
    return dict(sorted(Counter(group for _, group in run if group is not None).items()))
