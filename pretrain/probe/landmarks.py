"""Places of the body found in another person by the most alike feature: matching error in mm."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from pretrain.probe.config import ProbeConfig
from pretrain.probe.data import PLAIN, Size, choose_cases
from pretrain.probe.features import standardise
from pretrain.probe.scores import RESAMPLES, Figure
from voxscale.augment import spatial
from voxscale.augment.resample import resample
from voxscale.batch import Patch, collate
from voxscale.contract import InputContract
from voxscale.metrics.bootstrap import mean_ci
from voxscale.metrics.part_whole import Matching, at_points, centroids, matching_error
from voxscale.seed import derive, rng
from voxscale.store import open_store
from voxscale.stream.crop import cut, inside, intensity_scale, matrix, spans

CELLS = 16
"""Places along each axis of a crop among which a landmark is looked for, at most."""

PARTNERS = 3
"""Scans of other people in which the landmarks of each scan are looked for."""

ASIDE = 0.25
"""How far from the crop's middle its first landmark lies at most, in sides: else the middle would give it away."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """Crops around the centres of labelled structures.

    Attributes:
        images: (n, 1, z, y, x) in 0..1.
        points: (n, l, 3) voxel of the crop along z, y, x where each class has its centre of gravity; NaN if it has
            none in the crop.
        spacing: Of the crops in mm.
        subjects: Number of the subject of each.
    """

    images: Float[Tensor, "n 1 z y x"]
    points: Float[Tensor, "n l 3"]
    spacing: Triple
    subjects: tuple[int, ...]


def read_landmarks(config: ProbeConfig, patch: Size, contract: InputContract, seed: int) -> Landmarks | None:
    """Cut a crop of each scan that shows the class which most scans have; None if fewer than two people do.

    The centres are those of whole labels, not of what the crop shows of them.
    """
    assert config.labelled is not None
    store = open_store(config.labelled)
    names, numbers = choose_cases(store, config.cases, seed)
    found = {name: _centres(np.asarray(store.read_label(name))) for name in names}
    seen = Counter(value for each in found.values() for value in each)
    if not seen:
        return None
    first = min(seen, key=lambda value: (-seen[value], value))
    chosen = [(name, who) for name, who in zip(names, numbers, strict=True) if first in found[name]]
    if len({who for _, who in chosen}) < 2:
        return None
    classes, images, points = sorted(seen), [], []
    for name, _ in chosen:
        entry, draw = store.entries[name], rng(seed, "probe", "landmarks", name)
        drawn = spatial.sample(draw, PLAIN)
        size = spatial.extent(drawn, patch, contract.spacing, entry.spacing)
        shift = draw.uniform(-ASIDE, ASIDE, 3) * size
        centre = inside(found[name][first] + shift, entry.shape, size)
        box = cut(entry.shape, size, centre)
        mapping = matrix(drawn, patch, contract, entry.spacing, centre, box)
        crop = Patch(
            voxels=np.ascontiguousarray(store.read(name, spans(box))),
            label=None,
            matrix=mapping,
            scale=intensity_scale(entry, contract),
            seed=derive(seed, "probe", name),
            index=0,
            volume=name,
        )
        images.append(resample(collate([crop]), patch)[0])
        start = np.array([s.start for s in box])
        nowhere = np.full(3, np.nan)
        here = np.stack([found[name].get(value, nowhere) - start for value in classes])
        there = np.linalg.solve(mapping[:, :3], (here - mapping[:, 3]).T).T
        within = ((there >= -0.5) & (there <= np.array(patch) - 0.5)).all(axis=1, keepdims=True)
        points.append(torch.from_numpy(np.where(within, there, np.nan)))
    subjects = tuple(who for _, who in chosen)
    return Landmarks(torch.cat(images), torch.stack(points), contract.spacing, subjects)


def _centres(label: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
    """Centre of gravity of each class in voxels."""
    out: dict[int, NDArray[np.float64]] = {}
    for value, box in enumerate(ndimage.find_objects(label), 1):
        if box is not None:
            middle = centroids(torch.from_numpy(np.ascontiguousarray(label[box])), [value])[0].numpy()
            out[value] = middle + [s.start for s in box]
    return out


def lattice(maps: Sequence[Float[Tensor, "n _ _ _ _"]], patch: Sequence[int]) -> Float[Tensor, "n c _ _ _"]:
    """What all levels say at places in equal distances."""
    size = [min(CELLS, n) for n in patch]
    read = [F.interpolate(m.float(), size=size, mode="trilinear", align_corners=False) for m in maps]
    return torch.cat(read, dim=1).cpu()


def landmark_figures(
    maps: Mapping[str, tuple[Float[Tensor, "n c _ _ _"], Sequence[int]]], data: Landmarks, seed: int
) -> dict[str, Figure]:
    """Mean distance of the best match from the true place in mm, by source; less is better.

    Mean over landmarks and partners, then over the scans of a subject. Controls: `shuffled_features`, the mean
    distance where the places of the features are permuted, and `lattice`, that of the nearest place.

    Args:
        maps: `lattice` of each source, and the number of features of each level.
        data: Where landmarks are.
        seed: Of the bootstrap.
    """
    out: dict[str, Figure] = {}
    for source, (features, widths) in maps.items():
        errors = _errors(_even(features, widths), data)
        if len(errors) < 2:
            continue
        own, chance, floor = (
            [fmean(float(getattr(one, what).mean()) for one in each) for each in errors.values()]
            for what in ("mm", "chance", "floor")
        )
        controls = {"shuffled_features": fmean(chance), "lattice": fmean(floor)}
        out[f"{source}/landmark_mm"] = Figure(*mean_ci(own, seed, RESAMPLES), controls, tuple(own))
    return out


def _even(features: Tensor, widths: Sequence[int]) -> Tensor:
    """All levels of the same weight; means and deviations are those of every seventh place."""
    rows = features.flatten(2).mT
    some = rows[:, ::7].flatten(0, 1)
    even = torch.stack([standardise(some, each, widths)[1] for each in rows])
    return even.mT.unflatten(2, features.shape[2:])


def _errors(features: Tensor, data: Landmarks) -> dict[int, list[Matching]]:
    """Matches of each subject's landmarks in scans of other subjects."""
    size = data.images.shape[2:]
    cells = features.shape[2:]
    step = torch.tensor([n / m for n, m in zip(size, cells, strict=True)], dtype=torch.float64)
    mm = torch.tensor(data.spacing, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(*[torch.arange(m) for m in cells], indexing="ij")).double()
    places = ((grid + 0.5) * step.view(3, 1, 1, 1) - 0.5) * mm.view(3, 1, 1, 1)
    known = ~data.points.isnan().any(dim=2)
    read = [
        at_points(one, (points.nan_to_num() + 0.5) / step - 0.5)
        for one, points in zip(features, data.points, strict=True)
    ]
    out: dict[int, list[Matching]] = {}
    for number, who in enumerate(data.subjects):
        turn = [(number + shift) % len(read) for shift in range(1, len(read))]
        for other in [one for one in turn if data.subjects[one] != who][:PARTNERS]:
            both = known[number] & known[other]
            if both.any():
                truth = data.points[other][both] * mm
                found = matching_error(read[number][both], features[other], places, truth)
                out.setdefault(who, []).append(found)
    return out
