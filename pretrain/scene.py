"""All that the branches of a step look at; a view that several of them want is made once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from pretrain.views import ViewsConfig, change_intensity, invert, make_views
from voxscale.augment.resample import resample
from voxscale.batch import Batch, Views
from voxscale.config import require
from voxscale.samples import OWN, Samples
from voxscale.seed import rng

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One view of each sample.

    Attributes:
        images: (b, 1, z, y, x) in 0..1.
        inside: (b, 1, z, y, x) true inside the scan.
        place: (b, 3, 4); maps voxels of the view to voxels of the crop that it was cut from.
        mm: (b, 3, 4); maps voxels of the view to mm in the scan, see `voxscale.batch.Patch.mm`; from the crop's
            first voxel and before zoom where the batch does not know.
    """

    images: Float[Tensor, "b 1 z y x"]
    inside: Bool[Tensor, "b 1 z y x"]
    place: Float[Tensor, "b 3 4"]
    mm: Float[Tensor, "b 3 4"]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labelled samples of a step.

    Attributes:
        batch: One patch with its label for each sample.
        sets: Number of the set that each comes from.
    """

    batch: Batch
    sets: tuple[int, ...]


class Scene:
    """The samples of a step.

    Args:
        batch: (samples * crops) boxes on their device; the crops of a sample stand together.
        patch: Voxels of each crop along z, y, x.
        crops: Independent crops per sample.
        config: How values are changed.
        spacing: (z, y, x) of the patch's voxels in mm, before zoom.
        progress: Share of the run that is done.
        labelled: Labelled samples, if an objective learns from any.
        over: Whose samples are the batch: those of all ranks in training, where each rank's scene is its share.
    """

    def __init__(
        self,
        batch: Batch,
        patch: Size,
        crops: int,
        config: ViewsConfig,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        progress: float = 0.0,
        labelled: Labelled | None = None,
        over: Samples = OWN,
    ) -> None:
        self.labelled, self.over = labelled, over
        self.batch, self.patch, self.config, self.spacing, self.progress = batch, patch, config, spacing, progress
        self._crops = crops
        self._cut = [_rows(batch, crops, number) for number in range(crops)]
        self._views: dict[tuple[str, object], View] = {}

    @cached_property
    def crops(self) -> Views:
        """The independent crops of each sample; made when somebody asks for them."""
        return make_views(self.batch, self.patch, self._crops, self.config)

    def stored(self, number: int) -> Batch:
        """The boxes of one of the independent crops of each sample, as they are stored; -1 is the last one."""
        return self._cut[number]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each sample."""
        return self.batch.seeds[:: self._crops]

    def crop(self, number: int = 0) -> View:
        """One of the independent crops; the place of all but the first is unknown and given as none (NaN)."""
        key = ("crop", number)
        if key not in self._views:
            require(number < self.crops.images.shape[1], "objective.views", "crops that the stream cuts", number)
            place = torch.eye(3, 4, device=self.crops.images.device).repeat(len(self.seeds), 1, 1)
            mm = self._millimetres(place, number)
            place = place if number == 0 else place * float("nan")
            self._views[key] = View(self.crops.images[:, number], self.crops.inside[:, number], place, mm)
        return self._views[key]

    def all_crops(self, count: int) -> Views:
        """The first crops of each sample, as the objectives of several crops take them."""
        return Views(self.crops.images[:, :count], self.crops.inside[:, :count], self.seeds)

    def near(
        self,
        name: str,
        shares: tuple[float, float],
        central: bool = False,
        size: Size | None = None,
        flips: tuple[float, float, float] = (0.0, 0.0, 0.0),
        crop: int = 0,
    ) -> View:
        """A part of a crop, seen again: enlarged to a whole view, with changes of values of its own.

        It is read from the stored voxels, so it is as sharp as they are. An axis of one voxel is kept whole.

        Args:
            name: Tells views of the same kind apart; equal names with equal arguments are the same view.
            shares: Least and greatest side of the part, as a share of the crop's.
            central: Whether it lies in the crop's middle; else anywhere in it.
            size: Voxels of the view along z, y, x; the patch's own by default.
            flips: Probability of mirroring along z, y, x.
            crop: Which of the sample's independent crops.
        """
        key = ("near", (name, shares, central, size, flips, crop))
        if key not in self._views:
            require(0 < shares[0] <= shares[1] <= 1, "objective.shares", "two rising numbers up to 1", shares)
            require(crop < len(self._cut), "objective.views", "crops that the stream cuts", crop)
            own = (name, crop) if crop else (name,)
            drawn = [
                _part(rng(seed, "near", *own), self.patch, size or self.patch, shares, central, flips)
                for seed in self.seeds
            ]
            place = torch.from_numpy(np.stack(drawn)).to(self.batch.matrix)
            self._views[key] = self._look(place, size or self.patch, own)
        return self._views[key]

    @torch.no_grad()
    def _look(self, place: Float[Tensor, "b 3 4"], size: Size, own: tuple[str] | tuple[str, int]) -> View:
        crop = own[1] if len(own) == 2 else 0
        rows = self._cut[crop]
        images, inside, _ = resample(dataclasses.replace(rows, matrix=rows.matrix @ _square(place)), size)
        if self.config.intensity:
            images = change_intensity(images, lambda op: [rng(s, "views", op, *own) for s in self.seeds], self.config)
            images = invert(images, inside, self.seeds, self.config.invert)
        return View(images, inside, place, self._millimetres(place, crop))

    def _millimetres(self, place: Float[Tensor, "b 3 4"], crop: int) -> Float[Tensor, "b 3 4"]:
        known = self._cut[crop].mm
        if known is None:
            return place * torch.tensor(self.spacing).to(place).view(1, 3, 1)
        return known @ _square(place)


def _square(place: Float[Tensor, "b 3 4"]) -> Float[Tensor, "b 4 4"]:
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).to(place).expand(len(place), 1, 4)
    return torch.cat([place, last], dim=1)


def _rows(batch: Batch, crops: int, number: int) -> Batch:
    """One of the crops of each sample."""
    pick = slice(number, None, crops)
    return Batch(
        voxels=batch.voxels[pick],
        label=None if batch.label is None else batch.label[pick],
        sizes=batch.sizes[pick],
        matrix=batch.matrix[pick],
        scale=batch.scale[pick],
        seeds=batch.seeds[pick],
        indices=batch.indices[pick],
        removed=None if batch.removed is None else batch.removed[pick],
        mm=None if batch.mm is None else batch.mm[pick],
        scans=batch.scans[pick],
    )


def _part(
    generator: np.random.Generator,
    patch: Sequence[int],
    size: Sequence[int],
    shares: tuple[float, float],
    central: bool,
    flips: tuple[float, float, float],
) -> NDArray[np.float64]:
    """3x4 map from voxels of a view to those of the crop: one scale for all axes, and a place inside."""
    share = np.where(np.asarray(patch) == 1, 1.0, generator.uniform(*shares))
    room = generator.random(3)
    crop, view = np.asarray(patch, dtype=float), np.asarray(size, dtype=float)
    # The outer faces of the view's voxels lie on those of the part, so that a share of 1 is the crop itself.
    scale = share * crop / view
    free = (1 - share) * crop
    start = (free / 2 if central else room * free) + scale / 2 - 0.5
    flipped = generator.random(3) < np.asarray(flips)
    start, scale = np.where(flipped, start + scale * (view - 1), start), np.where(flipped, -scale, scale)
    return np.column_stack([np.diag(scale), start])
