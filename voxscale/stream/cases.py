"""Labelled samples from the store of a task, for fine-tuning."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.augment import spatial
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Patch
from voxscale.config import config, require
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.seed import derive, rng
from voxscale.store import open_store
from voxscale.stream.crop import Box, Size, cut, inside, intensity_scale, matrix, place, spans
from voxscale.stream.interface import Sample, first_intact
from voxscale.volume import Triple


@config
class CaseStreamConfig:
    """How labelled cases become samples.

    Attributes:
        foreground: Share of patches centred on a voxel of a random class of the case.
        cache_gb: Scans and labels kept in memory per process, in GB; of the others only the box is read.
        spatial: Zoom, mirroring and rotation of crops.
    """

    foreground: float = 0.5
    cache_gb: float = 1.0
    spatial: SpatialConfig = SpatialConfig(zoom=(0.85, 1.2), flip=(0.0, 0.0, 0.0), rotate=(15.0, 0.0, 0.0))

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(0 <= self.foreground <= 1, "stream.foreground", "in [0, 1]", self.foreground)
        require(self.cache_gb >= 0, "stream.cache_gb", "at least 0", self.cache_gb)


class CaseStream:
    """Labelled samples from a store: the cases of one training split, in random order with replacement by epoch.

    For a damaged case the one that follows it in the epoch's order stands in, so nothing is shown that is not of the
    split; of a single case nothing can.
    """

    def __init__(
        self,
        store: Path,
        cases: Sequence[str],
        patch: Size,
        contract: InputContract,
        config: CaseStreamConfig,
        seed: int,
    ) -> None:
        if not cases:
            raise DataError("cases must name at least one labelled scan, not none", "empty_split")
        self.store, self.cases, self.patch = open_store(store), tuple(cases), patch
        self.contract, self.config, self.seed = contract, config, seed
        self._scans: dict[str, tuple[NDArray[Any], NDArray[np.uint8]]] = {}
        self._damaged: set[str] = set()
        self._room_gb = config.cache_gb
        self._places: dict[str, dict[int, NDArray[np.int64]]] = {}

    def sample(self, index: int, spare: int = 0) -> Sample:
        """One labelled patch; of a damaged case, one of another case."""

        def draw(choice: int) -> tuple[str, Any]:
            volume = self.volume(index, choice)
            return volume, lambda: [self._patch(volume, index, choice)]

        return first_intact(draw, spare, len(self.cases))

    def volume(self, index: int, choice: int = 0) -> str:
        """The case that a global sample index shows, or a later choice in its place."""
        epoch, rest = divmod(index, len(self.cases))
        order = _permutation(self.seed, epoch, len(self.cases))
        return self.cases[int(order[(rest + choice) % len(order)])]

    def subject(self, index: int, choice: int = 0) -> str:
        """Subject of that case."""
        return self.store.entries[self.volume(index, choice)].subject

    def _patch(self, volume: str, index: int, choice: int) -> Patch:
        entry = self.store.entries[volume]
        generator = rng(self.seed, "crop", index, *[choice] * (choice > 0))
        drawn = spatial.sample(generator, self.config.spatial)
        size = spatial.extent(drawn, self.patch, self.contract.spacing, entry.spacing)
        centre = place(generator, entry.shape, size)
        if generator.random() < self.config.foreground:
            centre = self._on_label(generator, volume, centre, entry.shape, size)
        box = cut(entry.shape, size, centre)
        voxels, label = self._read(volume, box)
        return Patch(
            voxels=np.ascontiguousarray(voxels),
            label=np.ascontiguousarray(label),
            matrix=matrix(drawn, self.patch, self.contract, entry.spacing, centre, box),
            scale=intensity_scale(entry, self.contract),
            seed=derive(self.seed, "sample", index),
            index=index,
            volume=volume,
        )

    def _read(self, volume: str, box: Box) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """A box of a scan and of its label; whole scans are kept in memory while there is room for them.

        Of a damaged scan, boxes that are intact are read whether it would have been kept or not: which scans are
        depends on what this process was asked for before.
        """
        if volume not in self._scans and not self._keep(volume):
            return self.store.read(volume, spans(box)), self.store.read_label(volume, spans(box))
        voxels, label = self._scans[volume]
        return voxels[box], label[box]

    def _keep(self, volume: str) -> bool:
        """Read a scan whole into memory, if there is room and it is intact."""
        entry = self.store.entries[volume]
        size = int(np.prod(entry.shape)) * (np.dtype(entry.dtype).itemsize + 1) / 1e9
        if size > self._room_gb or volume in self._damaged:
            return False
        try:
            self._scans[volume] = self.store.read(volume), self.store.read_label(volume)
        except DataError as error:
            if error.reason != "corrupt":
                raise
            self._damaged.add(volume)
            return False
        self._room_gb -= size
        return True

    def _on_label(
        self, generator: np.random.Generator, volume: str, otherwise: Triple, shape: Sequence[int], size: Sequence[int]
    ) -> Triple:
        """Centre on a labelled voxel, but keep the box inside the scan where it fits."""
        if volume not in self._places:
            self._places[volume] = self.store.label_locations(volume)
        places = self._places[volume]
        if not places:
            return otherwise
        label = sorted(places)[int(generator.integers(len(places)))]
        voxel = places[label][int(generator.integers(len(places[label])))].astype(np.float64)
        return inside(voxel, shape, size)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return rng(seed, "epoch", epoch).permutation(length)
