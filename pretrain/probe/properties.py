"""Do embeddings compose, decompose and interpolate? Properties after Adam-v2, of any network, without its heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.probe.data import Size, Unlabelled
from pretrain.probe.scores import GROUPS, SHUFFLES, Figure
from voxscale.metrics.jackknife import jackknife_ci
from voxscale.metrics.part_whole import compose_gap, decompose_top1, interpolation_gap, mean_of_parts
from voxscale.models.interface import Backbone
from voxscale.parts import Splits, legal_splits, part_size, split
from voxscale.seed import rng

ENOUGH = 3
"""Wholes and subjects below which nothing is said: the common mean is taken away, one subject at a time left out."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Parts of crops, and windows of a part's size that lie on lines in them.

    Attributes:
        splits: Parts along z, y, x.
        parts: (n * p, 1, z, y, x) those of a crop together.
        counted: (n, p) whether a part shows body.
        windows: (m * 4, 1, z, y, x): start, end, half way, and as far from the start in another direction.
        segments: Crop of each four windows.
    """

    splits: Splits
    parts: Float[Tensor, "k 1 z y x"]
    counted: Bool[Tensor, "n p"]
    windows: Float[Tensor, "j 1 z y x"]
    segments: Int64[Tensor, " m"]


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """What a network makes of crops and tiles.

    Attributes:
        whole: Mean of the deepest features of each crop.
        slots: Their means over the place of each part.
        parts: Mean of the deepest features of each part, seen by itself.
        windows: The same of the four windows of each segment.
    """

    whole: Float[Tensor, "n d"]
    slots: Float[Tensor, "n p d"]
    parts: Float[Tensor, "n p d"]
    windows: Float[Tensor, "m 4 d"]


def find_splits(backbone: Backbone, patch: Size, spacing: Triple) -> Splits | None:
    """The most parts, 8, 4 or 2, that are images which the network takes; the longest axes in mm are halved."""
    for parts in (8, 4, 2):
        if splits := legal_splits(patch, spacing, parts, backbone.takes):
            return splits
    return None


def make_tiles(data: Unlabelled, splits: Splits, spacing: Triple, seed: int) -> Tiles:
    """Cut crops into parts, and cut windows from them; nothing is resampled.

    A part counts if a tenth of it is body, a segment if all of its windows do.
    """
    how = PartWholeConfig()
    body = ((data.images > how.air) & data.inside[:, None]).float()
    size = part_size(data.images.shape[2:], splits)
    windows: list[Tensor] = []
    segments: list[int] = []
    for number, image in enumerate(data.images):
        corners = _line(data.images.shape[2:], size, spacing, rng(seed, "probe", "line", number))
        boxes = [tuple(slice(a, a + n) for a, n in zip(c, size, strict=True)) for c in corners]
        if boxes and all(float(body[(number, 0, *box)].mean()) >= how.least_body for box in boxes):
            windows.append(torch.stack([image[(slice(None), *box)] for box in boxes]))
            segments.append(number)
    return Tiles(
        splits=splits,
        parts=split(data.images, splits).flatten(0, 1),
        counted=split(body, splits).mean(dim=(2, 3, 4, 5)) >= how.least_body,
        windows=torch.cat(windows) if windows else data.images.new_zeros(0, 1, *size),
        segments=torch.tensor(segments, dtype=torch.long),
    )


def _line(patch: Sequence[int], size: Size, spacing: Triple, draw: np.random.Generator) -> list[list[int]]:
    """First voxels of windows: in a corner, as far as may be along an axis, half way, and as far along another axis."""
    room = [n - m for n, m in zip(patch, size, strict=True)]
    wide = [axis for axis in range(3) if room[axis] >= 2]
    corner = draw.integers(0, 2, 3)
    if len(wide) < 2:
        return []
    first, second = (wide[at] for at in draw.permutation(len(wide))[:2].tolist())
    half = int(min(room[first] / 2, room[second] * spacing[second] / spacing[first]))
    aside = round(half * spacing[first] / spacing[second])
    if not half or not aside:
        return []
    start = [int(c) * n for c, n in zip(corner, room, strict=True)]

    def moved(axis: int, by: int) -> list[int]:
        return [s + (by if s == 0 else -by) * (axis == at) for at, s in enumerate(start)]

    return [start, moved(first, 2 * half), moved(first, half), moved(second, min(aside, room[second]))]


def property_figures(found: Embedded, tiles: Tiles, subjects: Sequence[int], seed: int) -> dict[str, Figure]:
    """Figures of composing, decomposing and interpolating; see `voxscale.metrics.part_whole`.

    `compose_gap`: cosine of a whole with the mean of its parts, less that with those of other subjects.
    `decompose_slots`, `decompose_scans`: how often what the whole's feature map holds in a slot is nearest to the part
    itself, among the parts of that whole and among those in the same slot of all subjects. `interpolation_gap`: cosine
    of the mean of two places' embeddings with that of the place between them, less that with a place as far away
    in another direction. Control `shuffled_features`: what belongs together is permuted. Intervals leave out
    subjects; where there are too few of anything, the figure is missing.
    """
    people = torch.tensor(subjects)
    full = tiles.counted.float().mean(dim=1) >= 0.5
    some = tiles.counted.any(dim=1)
    composed = mean_of_parts(found.parts, tiles.counted)

    def compose(rows: Tensor, draw: np.random.Generator | None) -> float:
        own = _order(len(rows), draw)
        return compose_gap(found.whole[rows], composed[rows][own], people[rows]).gap

    def top1(rows: Tensor, draw: np.random.Generator | None, what: str) -> float:
        guess, count = found.slots[rows], tiles.counted[rows]
        if draw is not None:
            flat, places = guess.flatten(0, 1), count.flatten().nonzero()[:, 0]
            mixed = flat.clone()
            mixed[places] = flat[places[_order(len(places), draw)]]
            guess = mixed.view_as(guess)
        return getattr(decompose_top1(guess, found.parts[rows], people[rows], count), what)

    def interpolate(rows: Tensor, draw: np.random.Generator | None) -> float:
        a, b, c, d = found.windows[rows].unbind(1)
        own = _order(len(rows), draw)
        return interpolation_gap(a, b, c[own], d[own], 0.5).gap

    on_lines = people[tiles.segments]
    asked = {
        "compose_gap": (compose, full.nonzero()[:, 0], people[full]),
        "decompose_slots": (lambda rows, draw: top1(rows, draw, "slots"), some.nonzero()[:, 0], people[some]),
        "decompose_scans": (lambda rows, draw: top1(rows, draw, "scans"), some.nonzero()[:, 0], people[some]),
        "interpolation_gap": (interpolate, torch.arange(len(on_lines)), on_lines),
    }
    figures = {name: _figure(of, rows, who, seed) for name, (of, rows, who) in asked.items()}
    return {name: one for name, one in figures.items() if one is not None}


Statistic = Callable[[Tensor, np.random.Generator | None], float]


def _figure(of: Statistic, rows: Tensor, people: Tensor, seed: int) -> Figure | None:
    who = people.unique()
    groups = min(GROUPS, len(who))
    dealt = torch.searchsorted(who, people) % max(groups, 1)
    parts = [rows[dealt == number] for number in range(groups)]
    if groups < ENOUGH or len(rows) - max(map(len, parts)) < ENOUGH:
        return None
    value, low, high = jackknife_ci(lambda some: of(torch.cat(list(some)).sort().values, None), parts)
    draws = [rng(seed, "probe", "properties", number) for number in range(SHUFFLES)]
    return Figure(value, low, high, {"shuffled_features": fmean(of(rows, draw) for draw in draws)})


def _order(count: int, draw: np.random.Generator | None) -> Tensor:
    return torch.arange(count) if draw is None else torch.from_numpy(draw.permutation(count))
