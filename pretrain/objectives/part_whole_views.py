"""Where wholes lie in the crop, and what of them student and teacher see.

All geometry is drawn before anything is cut: the stream mirrors and turns the crop, a whole is a box of it, parts
tile the whole exactly. Student and teacher differ in their values only, which are changed in the whole before it is
cut, so that whole and parts have the same window.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.part_whole_config import PartWholeConfig, level_of
from pretrain.scene import Scene
from pretrain.views import change_intensity, invert
from voxscale.augment.pool import coarser
from voxscale.augment.resample import resample
from voxscale.batch import Batch
from voxscale.parts import Splits, mirrored_slots, split
from voxscale.seed import rng
from voxscale.stream.wide import level_draw

Size = tuple[int, int, int]

PROBE = 8
"""Points along each axis at which body is looked for."""
MOST = 4
"""Greatest factor by which voxels are pooled: a store's pyramid goes no further either."""


@dataclass(frozen=True, slots=True, eq=False)
class Wholes:
    """The wholes of a step.

    Attributes:
        student: (b, 1, z, y, x) with the student's values.
        teacher: The same voxels with the teacher's values.
        views: Concentric views of the student: first the large one, (b, 1, z, y, x), then the small ones.
        counted: (b, p) parts that are not air, in the order of slots.
        order: (b, p) place in the view of each slot.
        levels: Level of each sample.
        sides: (b,) side of each whole in mm, the geometric mean over axes of more than one voxel.
    """

    student: Float[Tensor, "b 1 z y x"]
    teacher: Float[Tensor, "b 1 z y x"]
    views: list[Tensor]
    counted: Bool[Tensor, "b p"]
    order: Int64[Tensor, "b p"]
    levels: tuple[int, ...]
    sides: Float[Tensor, " b"]


@torch.no_grad()
def make_wholes(scene: Scene, config: PartWholeConfig, splits: Splits, small: Size) -> Wholes:
    """Choose a whole in each sample's crop and read what is seen of it.

    The crop is the first one, or one of its own where wholes may be wider: then the stream has made it as wide as the
    level says, and the whole is all of it.

    Args:
        scene: The samples.
        config: Levels, views, what is air.
        splits: Parts along z, y, x.
        small: Voxels of a small view along z, y, x.
    """
    reader = Reader(scene.stored(-1 if config.wider else 0))
    levels = tuple(
        min(
            level_of(config, scene.progress, level_draw(seed)),
            config.wider + deepest(config, splits, steps, scene.patch),
        )
        for seed, steps in zip(scene.seeds, reader.steps, strict=True)
    )
    place = _choose(reader, scene, config, levels)
    raw, inside = reader.read(place, scene.patch)
    views: list[Tensor] = []
    for number, (low, high) in enumerate(concentric(config)):
        size = small if number else scene.patch
        own = np.stack([central(_draw(s, "view", number).uniform(low, high), scene.patch, size) for s in scene.seeds])
        seen, within = reader.read(_then(place, own), size)
        views.append(_values(scene, seen, within, f"view{number}"))
    body = split(((raw > config.air) & inside).float(), splits).mean(dim=(2, 3, 4, 5))
    order = slot_order(reader, config, splits)
    return Wholes(
        student=_values(scene, raw, inside, "student"),
        teacher=_values(scene, raw, inside, "teacher"),
        views=views,
        counted=(body >= config.least_body).gather(1, order),
        order=order,
        levels=levels,
        sides=reader.sides(place, scene),
    )


def concentric(config: PartWholeConfig) -> list[tuple[float, float]]:
    """Least and greatest volume of each view, as a share of the whole's: the large one, then the small ones."""
    edges = np.linspace(*config.local_shares, config.local_views + 1).tolist()
    return [config.whole_share, *itertools.pairwise(edges)]


def deepest(config: PartWholeConfig, splits: Splits, steps: NDArray[Any], patch: Size) -> int:
    """The finest level at which a part's edge still has `least_voxels` stored voxels; at least 0.

    Args:
        config: Levels.
        splits: Parts along z, y, x.
        steps: Stored voxels per voxel of the crop along z, y, x.
        patch: Voxels of the crop.
    """
    axes = [axis for axis in range(3) if patch[axis] > 1]
    edges = [math.log2(patch[a] * steps[a] / splits[a]) for a in axes]
    if config.least_voxels == 0:
        return config.levels - 1
    return max(0, min(config.levels - 1, math.floor(sum(edges) / len(edges) - math.log2(config.least_voxels) + 1e-6)))


def slot_order(reader: "Reader", config: PartWholeConfig, splits: Splits) -> Int64[Tensor, "b p"]:
    """Place in the view of each slot: its own, or that before the crop was mirrored."""
    flips = reader.mirrored if config.slots == "body" else [(False, False, False)] * len(reader.mirrored)
    return torch.tensor([mirrored_slots(splits, one) for one in flips], device=reader.device)


def parts_of(images: Float[Tensor, "b 1 z y x"], splits: Splits) -> Float[Tensor, "n 1 _ _ _"]:
    """The parts of all samples, those of a sample together."""
    return split(images, splits).flatten(0, 1)


def shrunk(images: Float[Tensor, "b 1 z y x"], splits: Splits) -> Float[Tensor, "b 1 _ _ _"]:
    """The whole at the size of a part: means of blocks."""
    return F.avg_pool3d(images, list(splits))


def central(volume: float, patch: Size, size: Size) -> NDArray[np.float64]:
    """3x4 map from voxels of a view to those of a whole in whose middle it lies.

    Args:
        volume: Of the view, as a share of the whole's.
        patch: Voxels of the whole; an axis of one voxel is kept.
        size: Voxels of the view.
    """
    axes = sum(n > 1 for n in patch)
    shares = np.array([volume ** (1 / axes) if n > 1 else 1.0 for n in patch])
    return box(shares, np.full(3, 0.5), patch, size)


def box(shares: NDArray[Any], room: NDArray[Any], patch: Size, size: Size) -> NDArray[np.float64]:
    """3x4 map from voxels of a view to those of the box around it.

    Args:
        shares: Side of the view, as a share of the box's.
        room: Where in the room that is left it begins, 0 to 1.
        patch: Voxels of the box.
        size: Voxels of the view.
    """
    outer, inner = np.asarray(patch, dtype=float), np.asarray(size, dtype=float)
    # The outer faces of the view's voxels lie on those of the part.
    scale = shares * outer / inner
    return np.column_stack([np.diag(scale), room * (1 - shares) * outer + scale / 2 - 0.5])


class Reader:
    """Reads boxes of a crop of each sample from the stored voxels.

    Where a view is coarser than half of what is stored in the box, coarser levels are made of it: means of blocks of 2
    or 4, as in the store's pyramid. A wide crop has come from that pyramid, so little is left to do.

    Args:
        boxes: Of one crop of each sample.

    Attributes:
        steps: Stored voxels per voxel of the crop along z, y, x, of each sample.
        mirrored: Whether each sample's crop is mirrored along z, y, x.
        device: Of the voxels.
    """

    def __init__(self, boxes: Batch) -> None:
        self._first = boxes
        self._matrix = self._first.matrix.double().cpu().numpy()
        self._sizes = self._first.sizes.int().tolist()
        self._levels: dict[tuple[Size, tuple[int, ...]], Batch] = {}
        self.device = self._first.matrix.device
        linear = self._matrix[:, :, :3]
        axis = np.abs(linear).argmax(axis=1)  # of the box, for each axis of the crop
        self.steps = np.take_along_axis(np.abs(linear), axis[:, None], axis=1)[:, 0]
        signs = np.take_along_axis(linear, axis[:, None], axis=1)[:, 0]
        self.mirrored: list[tuple[bool, bool, bool]] = [tuple((s < 0).tolist()) for s in signs]

    def read(
        self, place: NDArray[np.float64], size: Size
    ) -> tuple[Float[Tensor, "b 1 z y x"], Bool[Tensor, "b 1 z y x"]]:
        """Images and what of them lies inside the scan.

        Args:
            place: (b, 3, 4) maps from voxels of the view to those of the crop.
            size: Voxels of the view.
        """
        matrix = _then(self._matrix, place)
        steps = np.abs(matrix[:, :, :3]).max(axis=2)
        factors = [pooling(one) for one in steps]
        images = torch.empty(len(place), 1, *size, device=self.device)
        inside = torch.empty(images.shape, dtype=torch.bool, device=self.device)
        given = torch.from_numpy(place).to(self._first.matrix)
        for factor in sorted(set(factors)):
            chosen = [row for row, one in enumerate(factors) if one == factor]
            level = self._level(factor, chosen)
            moved = level.matrix @ _square(given[chosen])
            images[chosen], inside[chosen], _ = resample(dataclasses.replace(level, matrix=moved), size)
        return images, inside

    def sides(self, place: NDArray[np.float64], scene: Scene) -> Float[Tensor, " b"]:
        """Side of each view of the patch's size in mm; before zoom where the batch does not know.

        Args:
            place: (b, 3, 4) maps from voxels of the view to those of the crop.
            scene: The samples.
        """
        known = self._first.mm
        fine = np.diag(scene.spacing)[None] if known is None else known[:, :, :3].double().cpu().numpy()
        wide = [axis for axis, n in enumerate(scene.patch) if n > 1]
        mm = np.linalg.norm(fine @ place[:, :, :3], axis=1) * scene.patch
        return torch.from_numpy(np.exp(np.log(mm[:, wide]).mean(axis=1))).float().to(self.device)

    def _level(self, factor: Size, chosen: Sequence[int]) -> Batch:
        """Some boxes at a coarser level, without the padding that others need."""
        key = factor, tuple(chosen)
        if key not in self._levels:
            z, y, x = (max(self._sizes[row][axis] for row in chosen) for axis in range(3))
            few = rows(self._first, chosen)
            trimmed = {
                name: None if part is None else part[:, :, :z, :y, :x]
                for name, part in (("voxels", few.voxels.float()), ("label", None), ("removed", few.removed))
            }
            self._levels[key] = coarser(dataclasses.replace(few, **trimmed), factor)
        return self._levels[key]


def pooling(steps: Sequence[float]) -> Size:
    """Blocks to pool, so that a view takes one to two pooled voxels a step; 1, 2 or 4."""
    z, y, x = (min(2 ** math.floor(math.log2(max(step, 1.0)) + 1e-6), MOST) for step in steps)
    return z, y, x


def rows(batch: Batch, pick: slice | Sequence[int]) -> Batch:
    """Some boxes of a batch."""

    def of(value: Any) -> Any:
        if value is None or isinstance(value, Tensor):
            return None if value is None else value[pick]
        return value[pick] if isinstance(pick, slice) else tuple(value[row] for row in pick if value)

    return Batch(**{field.name: of(getattr(batch, field.name)) for field in dataclasses.fields(batch)})


def _choose(reader: Reader, scene: Scene, config: PartWholeConfig, levels: Sequence[int]) -> NDArray[np.float64]:
    """(b, 3, 4) map from voxels of each whole to those of its crop: of several places that with most body."""
    wide = np.array([n > 1 for n in scene.patch])
    halved = [max(0, level - config.wider) for level in levels]
    shares = [np.where(wide, 0.5**level, 1.0) for level in halved]
    rooms = [_draw(seed, "place").random((config.tries, 3)) for seed in scene.seeds]
    best = np.zeros(len(levels), dtype=int)
    if any(halved) and config.tries > 1:
        probe: Size = tuple(min(PROBE, n) for n in scene.patch)  # pyright: ignore[reportAssignmentType]
        body = [
            _body(
                reader, [box(s, r[at], scene.patch, probe) for s, r in zip(shares, rooms, strict=True)], probe, config
            )
            for at in range(config.tries)
        ]
        best = torch.stack(body).argmax(dim=0).cpu().numpy()
    return np.stack([box(s, r[b], scene.patch, scene.patch) for s, r, b in zip(shares, rooms, best, strict=True)])


def _body(reader: Reader, places: list[NDArray[np.float64]], probe: Size, config: PartWholeConfig) -> Tensor:
    """(b,) share of body."""
    images, inside = reader.read(np.stack(places), probe)
    return ((images > config.air) & inside).float().mean(dim=(1, 2, 3, 4))


def _values(scene: Scene, images: Tensor, inside: Tensor, name: str) -> Tensor:
    """Change values as views are changed, by draws of this name; inverted like all views of the sample."""
    if not scene.config.intensity:
        return images

    def rngs(op: str) -> list[np.random.Generator]:
        return [_draw(seed, "values", op, name) for seed in scene.seeds]

    return invert(change_intensity(images, rngs, scene.config), inside, scene.seeds, scene.config.invert)


def _draw(seed: int, *keys: int | str) -> np.random.Generator:
    return rng(seed, "part_whole", *keys)


def _then(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply `inner`, then `outer`; (b, 3, 4) each."""
    linear = outer[:, :, :3]
    return np.concatenate([linear @ inner[:, :, :3], linear @ inner[:, :, 3:] + outer[:, :, 3:]], axis=2)


def _square(place: Float[Tensor, "b 3 4"]) -> Float[Tensor, "b 4 4"]:
    last = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(place).expand(len(place), 1, 4)
    return torch.cat([place, last], dim=1)
