"""Unlabelled samples straight from a store: random boxes of random scans, for those who do not want to pack."""

from pathlib import Path
from typing import Any

import numpy as np

from voxscale.augment import spatial
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Patch
from voxscale.config import config, require
from voxscale.contract import InputContract
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.folder import Access
from voxscale.seed import derive, rng
from voxscale.shards import group_of
from voxscale.store import open_store
from voxscale.stream.crop import Size, cut, intensity_scale, matrix, on_body, place, spans
from voxscale.stream.epoch import Order
from voxscale.stream.interface import Sample, first_intact
from voxscale.stream.weights import WeightsConfig

UNIT = 1024
"""Scans in a row of the index that are shuffled as one."""


@config
class StoreStreamConfig:
    """How scans become samples.

    Attributes:
        views: Crops per sample, all from one scan.
        repeats: Mean samples of a scan per epoch.
        mix: Runs of 1024 scans that are shuffled together.
        foreground: Share of crops centred in the body; the others lie anywhere in the scan.
        weights: How often each group of scans is shown.
        access: How local files are read; `range` for network file systems.
        spatial: Zoom, mirroring and rotation of crops.
    """

    views: int = 2
    repeats: float = 4.0
    mix: int = 64
    foreground: float = 0.9
    weights: WeightsConfig = WeightsConfig()
    access: Access = "map"
    spatial: SpatialConfig = SpatialConfig()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.views >= 1, "stream.views", "at least 1", self.views)
        require(self.repeats > 0, "stream.repeats", "positive", self.repeats)
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
    """

    def __init__(self, path: Path, patch: Size, contract: InputContract, config: StoreStreamConfig, seed: int) -> None:
        self.store = open_store(path, config.access)
        self.patch, self.contract, self.config, self.seed = patch, contract, config, seed
        self._keys, groups = self.store.volumes_by_group(group_of)
        if not len(self._keys):
            raise DataError("store must hold at least one accepted volume", "empty_store")
        self._names = sorted(set(groups))
        number = {name: place for place, name in enumerate(self._names)}
        self._codes = np.array([number[name] for name in groups], dtype=np.int32)
        units = [self._codes[start : start + UNIT] for start in range(0, len(self._codes), UNIT)]
        counts = [np.bincount(unit, minlength=len(self._names)) for unit in units]
        named = [{name: int(n) for name, n in zip(self._names, row, strict=True) if n} for row in counts]
        self.order = Order(named, config.repeats, config.mix, config.weights, seed)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.order.length

    def volume(self, index: int, choice: int = 0) -> str:
        """Id of the scan that a global sample index shows, or of a later choice in its place."""
        epoch, where = divmod(index, len(self))
        entry = self.order.spare(epoch, where, choice) if choice else self.order.entry(epoch, where)
        codes = self._codes[entry.unit * UNIT : (entry.unit + 1) * UNIT]
        same = np.flatnonzero(codes == self._names.index(self.order.groups[entry.group]))
        return str(self._keys[entry.unit * UNIT + int(same[entry.place])])

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
        drawn = spatial.sample(generator, self.config.spatial)
        size = spatial.extent(drawn, self.patch, self.contract.spacing, entry.spacing)
        centre = place(generator, entry.shape, size)
        if entry.occupancy is not None and generator.random() < self.config.foreground:
            centre = on_body(generator, entry.occupancy, entry.shape, size)
        box = cut(entry.shape, size, centre)
        return Patch(
            voxels=self.store.read_of(key, entry, spans(box)),
            label=None,
            matrix=matrix(drawn, self.patch, self.contract, entry.spacing, centre, box),
            scale=intensity_scale(entry, self.contract),
            seed=derive(self.seed, "sample", index, view),
            index=index,
            volume=key,
            removed=self.store.removed_of(key, entry, spans(box)),
        )
