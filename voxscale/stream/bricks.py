"""Unlabelled samples from shards: a few tars at a time, a few crops from each brick that is read."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.augment import spatial
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Patch
from voxscale.config import config, require
from voxscale.errors import DataError
from voxscale.folder import Access
from voxscale.pyramid import levels
from voxscale.seed import derive, rng
from voxscale.shard_reader import ShardReader
from voxscale.shards import BrickInfo, SampleIndex, Split, read_manifest
from voxscale.stream.alike import AlikeConfig, graphs_of
from voxscale.stream.crop import cut, inside, intensity_scale, matrix, millimetres, on_body, place, spans
from voxscale.stream.epoch import Entry, Order
from voxscale.stream.interface import Sample, first_intact
from voxscale.stream.weights import WeightsConfig
from voxscale.stream.wide import Place, WideCrops, level_for, placed, widened

SHORT = ("int8", "uint8", "int16", "uint16")
"""Number types that `as_float` concerns."""

_Key = tuple[str, str, int]
"""Tar, brick, and number of the run of samples that share it."""


@dataclass(frozen=True, slots=True)
class _Crops:
    """Crops of the samples that share a brick; of a sample that was handed out they are gone."""

    key: _Key
    info: BrickInfo
    samples: dict[int, list[tuple[Place, NDArray[Any], NDArray[np.uint8] | None]]]


@config
class ShardStreamConfig:
    """How bricks become samples.

    Attributes:
        views: Crops per sample, all from one brick.
        patches: Samples in a row from each brick that is read; more read less and mix batches less.
        repeats: Mean showings of a brick per epoch, each of `patches` samples.
        mix: Tars whose bricks are shuffled together, and whose indexes each process holds (1.4 kB a brick).
        foreground: Share of crops centred in the body; the others lie anywhere in the brick.
        split: Which people's bricks.
        weights: How often each group of bricks is shown.
        alike: Which samples come in a row.
        access: How local tars are read; `range` for network file systems.
        as_float: Whether 8- and 16-bit numbers become float32 as they are decoded, and not on the device: no pass of
            its own, but two to four times the bytes of a batch.
        spatial: Zoom, mirroring and rotation of crops.
    """

    views: int = 2
    patches: int = 1
    repeats: float = 4.0
    mix: int = 256
    foreground: float = 0.9
    split: Split = "train"
    weights: WeightsConfig = WeightsConfig()
    alike: AlikeConfig = AlikeConfig()
    access: Access = "map"
    as_float: bool = False
    spatial: SpatialConfig = SpatialConfig()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.views >= 1, "stream.views", "at least 1", self.views)
        require(self.patches >= 1, "stream.patches", "at least 1", self.patches)
        require(0 < self.repeats <= 1e6, "stream.repeats", "positive and at most 1000000", self.repeats)
        require(self.mix >= 1, "stream.mix", "at least 1", self.mix)
        require(0 <= self.foreground <= 1, "stream.foreground", "in [0, 1]", self.foreground)
        whole = self.alike.group == 1 or self.alike.group % self.patches == 0
        require(whole, "stream.alike.group", f"a multiple of patches, {self.patches}", self.alike.group)


class ShardStream:
    """Samples from a folder of shards, or its URL.

    What is opened grows with what is read, not with what there is: the plan of
    an epoch is made from the manifest alone.

    Args:
        folder: The shards.
        config: How bricks become samples.
        seed: Of everything.
        wide: Crops that are read from coarser levels, if any are.
    """

    def __init__(self, folder: Path, config: ShardStreamConfig, seed: int, wide: WideCrops | None = None) -> None:
        self.folder, self.config, self.seed, self.wide = folder, config, seed, wide
        self.manifest, self.manifest_sha256 = read_manifest(folder, config.access)
        self._lines = [line for line in self.manifest.shards if line.split == config.split]
        if not self._lines:
            raise DataError(f"stream.split must be one that the shards have, not {config.split}", "empty_split")
        self._reader = ShardReader(folder, self.manifest, config.access, config.mix)
        groups = [line.groups for line in self._lines]
        graphs = graphs_of(config.alike, config.patches, showings_apart=True)
        self.order = Order(groups, config.repeats, config.mix, config.weights, seed, graphs)
        self._start()

    def _start(self) -> None:
        self._held: _Crops | None = None
        self._places: Any = lru_cache(maxsize=max(16, self.config.mix))(self._find_places)
        self._coarse: Any = lru_cache(maxsize=max(16, self.config.mix))(self._find_coarse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_held", "_places", "_coarse")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.order.length * self.config.patches

    def entry(self, index: int, choice: int = 0) -> Entry:
        """The plan's entry for a global sample index, or a later choice in its place."""
        epoch, rest = divmod(index, len(self))
        where = rest // self.config.patches
        return self.order.spare(epoch, where, choice) if choice else self.order.entry(epoch, where)

    def sample(self, index: int, spare: int = 0) -> Sample:
        """Views of one brick; of a damaged brick, those of another one."""

        def draw(choice: int) -> tuple[str, Any]:
            entry = self.entry(index, choice)
            return self._name(entry), lambda: self._patches(entry, index)

        return first_intact(draw, spare)

    def subject(self, index: int, choice: int = 0) -> str:
        """Subject of the scan that a global sample index shows, or of a later choice in its place.

        Raises:
            DataError: With reason `corrupt` if the tar's index is damaged.
        """
        return self.brick(self.entry(index, choice))[1].subject

    def neighbours(self, epoch: int, least: int) -> dict[str, NDArray[np.int64]]:
        """What consecutive samples from an epoch's start show, for `voxscale.stream.quality`.

        The index of every tar that they come from is read; people of a damaged one are not known.

        Args:
            epoch: From 0.
            least: Samples, at least.

        Returns:
            Numbers of brick, subject and tar, (n,) each; -1 where it is not known.
        """
        rows = self.order.rows(epoch, -(-least // self.config.patches))
        people: dict[str, int] = {}
        subject = np.full(len(rows), -1)
        for unit in np.unique(rows[:, 0]).tolist():
            try:
                places = self._find_places(unit)
            except DataError:
                continue
            for at in np.flatnonzero(rows[:, 0] == unit):
                found = places[self.order.groups[rows[at, 1]]][rows[at, 2]]
                subject[at] = people.setdefault(found.subject, len(people))
        brick = np.unique(rows[:, :3], axis=0, return_inverse=True)[1].reshape(-1)
        keys = {"brick": brick, "subject": subject, "tar": rows[:, 0]}
        return {kind: np.repeat(key, self.config.patches) for kind, key in keys.items()}

    def _find_places(self, unit: int) -> dict[str, list[SampleIndex]]:
        found: dict[str, list[SampleIndex]] = {}
        for sample in self._reader.index(self._lines[unit].name).samples:
            found.setdefault(sample.group, []).append(sample)
        return found

    def _find_coarse(self, name: str) -> dict[str, list[SampleIndex]]:
        """Coarser levels of each scan of a tar, level 1 first."""
        found: dict[str, list[SampleIndex]] = {}
        for level in sorted(self._reader.index(name).coarse, key=lambda each: each.level):
            found.setdefault(level.volume, []).append(level)
        return found

    def brick(self, entry: Entry) -> tuple[str, SampleIndex]:
        """Tar and brick of a plan's entry.

        Raises:
            DataError: With reason `corrupt` if the tar's index is damaged.
        """
        return self._lines[entry.unit].name, self._places(entry.unit)[self.order.groups[entry.group]][entry.place]

    def _name(self, entry: Entry) -> str:
        """Id of the scan, or the tar's name if its index cannot tell."""
        try:
            return self.brick(entry)[1].volume
        except DataError:
            return self._lines[entry.unit].name

    def _patches(self, entry: Entry, index: int) -> list[Patch]:
        name, where = self.brick(entry)
        key = (name, where.key, index // self.config.patches)
        if self._held is None or self._held.key != key or index not in self._held.samples:
            self._held = None  # so that the next ones can have its memory
            self._held = self._read(key, name, where)
        info, crops = self._held.info, self._held.samples.pop(index)
        return [self._patch(info, index, view, *crop) for view, crop in enumerate(crops)]

    def _read(self, key: _Key, name: str, where: SampleIndex) -> _Crops:
        """Draw all crops of a brick's samples and read them together, whoever asks for which of them.

        So whether a damaged byte matters to a sample does not depend on who reads its neighbours.
        """
        brick = self._reader.open(name, where)
        first, each, views = key[2] * self.config.patches, self.config.patches, self.config.views
        coarse = [] if self.wide is None else self._coarse(name).get(where.volume, [])
        places = [
            self._place(brick.info, index, view, len(coarse))
            for index in range(first, first + each)
            for view in range(views)
        ]
        found: dict[int, tuple[NDArray[Any], NDArray[np.uint8] | None]] = {}
        for level in sorted({one.level for one in places}):
            opened = self._reader.open(name, coarse[level - 1]) if level else brick
            here = [number for number, one in enumerate(places) if one.level == level]
            boxes = [spans(places[number].box) for number in here]
            voxels = opened.read(boxes, self.config.as_float and brick.info.dtype in SHORT)
            found |= zip(here, zip(voxels, opened.read_mask(boxes) or [None] * len(here), strict=True), strict=True)
        crops = [(one, *found[number]) for number, one in enumerate(places)]
        samples = {first + number: crops[number * views : (number + 1) * views] for number in range(each)}
        return _Crops(key, brick.info, samples)

    def _place(self, info: BrickInfo, index: int, view: int, coarser: int) -> Place:
        """Draw where a crop lies: in the brick, or, if it is wide, in one of so many coarser levels of its scan."""
        contract, patch = self.manifest.contract, self.manifest.patch
        generator = rng(self.seed, "crop", index, view)
        drawn = spatial.sample(generator, self.config.spatial)
        size = spatial.extent(drawn, patch, contract.spacing, info.spacing)
        centre = place(generator, info.shape, size)
        if info.occupancy is not None and generator.random() < self.config.foreground:
            centre = on_body(generator, info.occupancy, info.shape, size, info.lead)
        if self.wide is not None and view == self.wide.view and coarser and info.scan is not None:
            factor = self.wide.factor(index, derive(self.seed, "sample", index, 0))
            wide, factor = widened(drawn, factor, patch, contract, info.scan, info.spacing)
            if factor > 1:
                size = spatial.extent(wide, patch, contract.spacing, info.spacing)
                centre = inside(np.add(centre, info.start), info.scan, size)
                pyramid = levels(info.scan, info.spacing)[: coarser + 1]
                # What is larger than a brick lies whole in level 1 only, even where the scan itself is sharper.
                level = max(1, level_for(factor, patch, contract, info.spacing, pyramid))
                return placed(wide, patch, contract, info.spacing, centre, level, pyramid[level])
        box = cut(info.shape, size, centre)
        mapping = matrix(drawn, patch, contract, info.spacing, centre, box)
        return Place(0, box, mapping, millimetres(mapping, box, info.spacing, info.start))

    def _patch(
        self, info: BrickInfo, index: int, view: int, where: Place, voxels: NDArray[Any], mask: NDArray[np.uint8] | None
    ) -> Patch:
        return Patch(
            voxels=voxels,
            label=None,
            matrix=where.matrix,
            scale=intensity_scale(info, self.manifest.contract),
            seed=derive(self.seed, "sample", index, view),
            index=index,
            volume=info.volume,
            removed=mask,
            mm=where.mm,
        )
