"""Streams: sample i of a stream is a pure function of (data, config, seed, i).

Nothing here keeps a position: ranks and workers are told which global indices
are theirs, so a run goes on at the same sample whatever their number.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from voxscale.augment import spatial
from voxscale.augment.spatial import Spatial, SpatialConfig
from voxscale.batch import Batch, Patch, collate
from voxscale.config import config, require
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.seed import derive, rng
from voxscale.shards import Brick, BrickInfo, open_manifest, read_masked_brick
from voxscale.store import Entry, open_store
from voxscale.volume import Triple

Size = tuple[int, int, int]
Box = tuple[slice, slice, slice]


class PatchStream(Protocol):
    """Anything that makes the patches of a global sample index."""

    def sample(self, index: int) -> list[Patch]:
        """The patches (views of one scan) of one sample."""
        ...


@config
class ShardStreamConfig:
    """How bricks become samples.

    Attributes:
        views: Crops per sample, all from one brick.
        repeats: Samples per brick and epoch.
        spatial: Zoom, mirroring and rotation of crops.
    """

    views: int = 2
    repeats: int = 4
    spatial: SpatialConfig = SpatialConfig()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.views >= 1, "stream.views", "at least 1", self.views)
        require(self.repeats >= 1, "stream.repeats", "at least 1", self.repeats)


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


def place(generator: np.random.Generator, shape: Sequence[int], size: Sequence[int]) -> Triple:
    """Draw the centre of a box so that the box lies inside the scan; an axis shorter than the box is centred."""
    room = np.maximum(np.asarray(shape) - np.asarray(size), 0)
    start = generator.random(3) * room
    z, y, x = np.where(room > 0, start + (np.asarray(size) - 1) / 2, (np.asarray(shape) - 1) / 2)
    return float(z), float(y), float(x)


def cut(shape: Sequence[int], size: Sequence[int], centre: Triple) -> Box:
    """The box of a given size around a centre, clipped to the scan."""
    start = np.floor(np.asarray(centre) - (np.asarray(size) - 1) / 2).astype(int)
    low = np.clip(start, 0, np.asarray(shape) - 1)
    high = np.clip(start + size, low + 1, shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def intensity_scale(entry: Entry | BrickInfo, contract: InputContract) -> tuple[float, float]:
    """Slope and offset that turn stored numbers into network input."""
    low, high = contract.window(entry.modality, entry.percentiles)
    return entry.slope / (high - low), (entry.intercept - low) / (high - low)


class ShardStream:
    """Unlabelled samples from shards.

    An epoch is a permutation of all bricks times `repeats`, drawn from (seed,
    epoch); every entry of it is delivered once.
    """

    def __init__(self, folder: Path, config: ShardStreamConfig, seed: int) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self.manifest, indexes = open_manifest(folder)
        self.bricks = [(shard.name, sample) for shard in indexes for sample in shard.samples]

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self.bricks) * self.config.repeats

    def entry(self, epoch: int, place: int) -> int:
        """Brick at a place of an epoch's order."""
        return int(_permutation(self.seed, epoch, len(self))[place]) % len(self.bricks)

    def sample(self, index: int) -> list[Patch]:
        """Views of one brick."""
        shard, where = self.bricks[self.entry(*divmod(index, len(self)))]
        brick = read_masked_brick(self.folder, shard, where)
        return [self._view(brick, index, view) for view in range(self.config.views)]

    def _view(self, brick: Brick, index: int, view: int) -> Patch:
        info, voxels, removed = brick
        contract, patch = self.manifest.contract, self.manifest.patch
        generator = rng(self.seed, "crop", index, view)
        drawn = spatial.sample(generator, self.config.spatial)
        size = spatial.extent(drawn, patch, contract.spacing, info.spacing)
        centre = place(generator, voxels.shape, size)
        box = cut(voxels.shape, size, centre)
        return Patch(
            voxels=np.ascontiguousarray(voxels[box]),
            label=None,
            matrix=_matrix(drawn, patch, contract, info.spacing, centre, box),
            scale=intensity_scale(info, contract),
            seed=derive(self.seed, "sample", index, view),
            index=index,
            volume=info.volume,
            removed=None if removed is None else np.ascontiguousarray(removed[box]),
        )


class CaseStream:
    """Labelled samples from a store: the cases of one training split, in random order with replacement by epoch."""

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
        self._room_gb = config.cache_gb
        self._places: dict[str, dict[int, NDArray[np.int64]]] = {}

    def sample(self, index: int) -> list[Patch]:
        """One labelled patch."""
        epoch, rest = divmod(index, len(self.cases))
        volume = self.cases[int(_permutation(self.seed, epoch, len(self.cases))[rest])]
        entry = self.store.entries[volume]
        generator = rng(self.seed, "crop", index)
        drawn = spatial.sample(generator, self.config.spatial)
        size = spatial.extent(drawn, self.patch, self.contract.spacing, entry.spacing)
        centre = place(generator, entry.shape, size)
        if generator.random() < self.config.foreground:
            centre = self._on_label(generator, volume, centre, entry.shape, size)
        box = cut(entry.shape, size, centre)
        voxels, label = self._read(volume, box)
        return [
            Patch(
                voxels=np.ascontiguousarray(voxels),
                label=np.ascontiguousarray(label),
                matrix=_matrix(drawn, self.patch, self.contract, entry.spacing, centre, box),
                scale=intensity_scale(entry, self.contract),
                seed=derive(self.seed, "sample", index),
                index=index,
                volume=volume,
            )
        ]

    def _read(self, volume: str, box: Box) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """A box of a scan and of its label; whole scans are kept in memory while there is room for them."""
        if volume not in self._scans:
            entry = self.store.entries[volume]
            size = int(np.prod(entry.shape)) * (np.dtype(entry.dtype).itemsize + 1) / 1e9
            if size > self._room_gb:
                where = [(s.start, s.stop) for s in box]
                return self.store.read(volume, where), self.store.read_label(volume, where)
            self._room_gb -= size
            self._scans[volume] = self.store.read(volume), self.store.read_label(volume)
        voxels, label = self._scans[volume]
        return voxels[box], label[box]

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
        half = (np.asarray(size) - 1) / 2
        last = np.asarray(shape) - 1
        inside = np.where(last > 2 * half, np.clip(voxel, half, np.maximum(last - half, half)), last / 2)
        z, y, x = inside.tolist()
        return z, y, x


def _matrix(
    drawn: Spatial, patch: Size, contract: InputContract, spacing: Triple, centre: Triple, box: Box
) -> NDArray[np.float64]:
    """Map patch voxels to voxels of the box that was cut."""
    z, y, x = (c - s.start for c, s in zip(centre, box, strict=True))
    return spatial.matrix(drawn, patch, contract.spacing, spacing, (z, y, x))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return rng(seed, "epoch", epoch).permutation(length)


class _Samples(Dataset[list[Patch]]):
    """A stream as a map-style data set, so that workers hold no state."""

    def __init__(self, stream: PatchStream) -> None:
        self.stream = stream

    def __getitem__(self, index: int) -> list[Patch]:
        return self.stream.sample(index)


def rank_indices(start: int, steps: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[list[int]]:
    """Global indices of each micro-batch of one rank.

    Step s of a run reads indices s * batch ... (s + 1) * batch - 1: micro-batch
    by micro-batch, and within one, rank by rank.

    Args:
        start: First step.
        steps: Steps of the whole run.
        batch: Samples per step over all ranks.
        accumulate: Micro-batches per step.
        rank: Of this process.
        world: Number of processes; times `accumulate` it divides `batch`.
    """
    micro = batch // (accumulate * world)
    for step in range(start, steps):
        for part in range(accumulate):
            first = step * batch + (part * world + rank) * micro
            yield list(range(first, first + micro))


def _collate(samples: list[list[Patch]]) -> Batch:
    return collate([patch for sample in samples for patch in sample])


def load(stream: PatchStream, indices: Iterator[list[int]], workers: int, pin: bool) -> Iterator[Batch]:
    """Load micro-batches in order.

    Args:
        stream: Where samples come from.
        indices: Global indices of each micro-batch, see `rank_indices`.
        workers: Loading processes; 0 loads in this one.
        pin: Whether to copy into page-locked memory.
    """
    loader = DataLoader(
        _Samples(stream),
        batch_sampler=_Batches(indices),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        timeout=600 if workers else 0,
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)


class _Batches:
    """An iterator in the form that the data loader takes."""

    def __init__(self, indices: Iterator[list[int]]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[list[int]]:
        return self.indices
