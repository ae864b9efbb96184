"""What probes look at: a fixed choice of crops and voxels, drawn from the run's seed alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from pretrain.probe.config import ProbeConfig
from voxscale.augment.resample import resample
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import collate
from voxscale.config import require
from voxscale.contract import InputContract
from voxscale.seed import derive, rng
from voxscale.store import Store, open_store
from voxscale.stream import CaseStream, CaseStreamConfig, ShardStream, StoreStream

Size = tuple[int, int, int]

PLAIN = SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0), rotate=(0.0, 0.0, 0.0))
"""No change of place, so that all crops are upright and at the contract's spacing."""


@dataclass(frozen=True, slots=True, eq=False)
class Voxels:
    """Some voxels of some crops.

    Attributes:
        crop: Number of each voxel's crop.
        place: (n, 3) its index along z, y, x.
        label: Its class, counted from 0 without gaps; 0 is background.
        case: Number of its scan.
    """

    crop: Int64[Tensor, " n"]
    place: Int64[Tensor, "n 3"]
    label: Int64[Tensor, " n"]
    case: Int64[Tensor, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Crops of labelled scans, all in host memory.

    Attributes:
        images: (n, 1, z, y, x) in 0..1.
        labels: (n, z, y, x) as stored.
        examples: Voxels to learn from.
        queries: Voxels to be named.
        subjects: Number of the subject of each scan.
        folds: Number of the part of the cross-validation in which each scan is tested.
        classes: Stored value of each class.
    """

    images: Float[Tensor, "n 1 z y x"]
    labels: UInt8[Tensor, "n z y x"]
    examples: Voxels
    queries: Voxels
    subjects: tuple[int, ...]
    folds: tuple[int, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unlabelled:
    """Crops of the training scans, upright and with plain values.

    Attributes:
        images: (n, 1, z, y, x) in 0..1.
        inside: (n, z, y, x) true inside the scan.
        subjects: Number of each crop's subject.
    """

    images: Float[Tensor, "n 1 z y x"]
    inside: Bool[Tensor, "n z y x"]
    subjects: tuple[int, ...]


def read_labelled(config: ProbeConfig, patch: Size, contract: InputContract, seed: int) -> Labelled:
    """Cut crops around labelled voxels and choose voxels in them.

    Args:
        config: Which store, how many of what.
        patch: Voxels of a crop along z, y, x.
        contract: Of the network's input; it may differ from the one that the store was planned for.
        seed: Of the run.

    Raises:
        ConfigError: If the store holds labelled volumes of fewer than two subjects.
    """
    assert config.labelled is not None
    store = open_store(config.labelled)
    names, numbers = choose_cases(store, config.cases, seed)
    count = len(set(numbers))
    require(count >= 2, "probe.labelled", "a store with labelled scans of at least 2 subjects", count)
    images, labels, insides = (torch.cat(part) for part in zip(
        *[_crops(config.labelled, case, config, patch, contract, seed) for case in names], strict=True
    ))  # fmt: skip
    classes = (0, *(int(value) for value in labels.unique() if value > 0))
    dense = torch.bucketize(labels.long(), torch.tensor(classes))
    cases = torch.arange(len(names)).repeat_interleave(config.crops)
    draws = [rng(seed, "probe", "voxels", case) for case in names]
    return Labelled(
        images=images,
        labels=labels,
        examples=choose_examples(dense, insides, cases, config.examples, draws),
        queries=choose_queries(dense, insides, cases, config.queries),
        subjects=numbers,
        folds=deal(numbers, config.folds, seed),
        classes=classes,
    )


def choose_cases(store: Store, most: int, seed: int) -> tuple[list[str], tuple[int, ...]]:
    """A random choice of labelled scans, and numbers for their subjects."""
    subjects = {key: entry.subject for key, entry in store.entries.items() if entry.label and not entry.planar}
    names = sorted(subjects)
    names = sorted(names[at] for at in rng(seed, "probe", "cases").permutation(len(names))[:most].tolist())
    people = {person: number for number, person in enumerate(dict.fromkeys(subjects[name] for name in names))}
    return names, tuple(people[subjects[name]] for name in names)


def _crops(
    store: Path, case: str, config: ProbeConfig, patch: Size, contract: InputContract, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and what lies inside, of one scan."""
    how = CaseStreamConfig(foreground=1.0, cache_gb=0.0, spatial=PLAIN)
    stream = CaseStream(store, [case], patch, contract, how, derive(seed, "probe", case))
    batch = collate([stream.sample(number)[0][0] for number in range(config.crops)])
    images, inside, label = resample(batch, patch)
    assert label is not None  # a case stream yields labelled patches only
    return images, label[:, 0], inside[:, 0]


def deal(subjects: Sequence[int], folds: int, seed: int) -> tuple[int, ...]:
    """Number of the fold of each scan; scans of one subject share it, and folds differ by one subject at most."""
    people = sorted(set(subjects))
    order = rng(seed, "probe", "folds").permutation(len(people)).tolist()
    place = {people[who]: at % min(folds, len(people)) for at, who in enumerate(order)}
    return tuple(place[subject] for subject in subjects)


def choose_queries(
    labels: Int64[Tensor, "n z y x"], inside: Bool[Tensor, "n z y x"], cases: Int64[Tensor, " n"], most: int
) -> Voxels:
    """Every s-th voxel along each axis that lies inside its scan; s is the least that leaves `most` of a scan's."""
    crops, size = int((cases == cases[0]).sum()), labels.shape[1:]
    step = 1
    while crops * math.prod(-(-n // step) for n in size) > most:
        step += 1
    lattice = torch.zeros_like(inside)
    lattice[:, step // 2 :: step, step // 2 :: step, step // 2 :: step] = True
    return _voxels((lattice & inside).nonzero(), labels, cases)


def choose_examples(
    labels: Int64[Tensor, "n z y x"],
    inside: Bool[Tensor, "n z y x"],
    cases: Int64[Tensor, " n"],
    count: int,
    draws: Sequence[np.random.Generator],
) -> Voxels:
    """Of each scan half background, the rest from its classes alike; fewer where a class has fewer voxels."""
    picked: list[Tensor] = []
    for case, draw in enumerate(draws):
        own = (inside & (cases == case)[:, None, None, None]).nonzero()
        values = labels[tuple(own.T)]
        present = [int(value) for value in values.unique() if value > 0]
        for value in [0, *present]:
            places = own[values == value]
            share = count // 2 if value == 0 else count // 2 // len(present)
            picked.append(places[torch.from_numpy(_some(draw, len(places), share))])
    return _voxels(torch.cat(picked), labels, cases)


def _some(draw: np.random.Generator, length: int, count: int) -> NDArray[np.int64]:
    return np.sort(draw.permutation(length)[:count])


def _voxels(at: Tensor, labels: Tensor, cases: Tensor) -> Voxels:
    return Voxels(crop=at[:, 0], place=at[:, 1:], label=labels[tuple(at.T)], case=cases[at[:, 0]])


def read_unlabelled(stream: ShardStream | StoreStream, patch: Size, count: int) -> Unlabelled:
    """The first crops of an order of their own, so that nothing of the training's stream is touched.

    Args:
        stream: See `pretrain.source.open_upright`.
        patch: Voxels of a crop along z, y, x.
        count: How many.
    """
    images, insides, numbers = list[Tensor](), list[Tensor](), list[int]()
    people: dict[str, int] = {}
    for index in range(count):
        found, damaged = stream.sample(index)
        image, inside, _ = resample(collate(found), patch)
        images.append(image)
        insides.append(inside[:, 0])
        numbers.append(people.setdefault(stream.subject(index, len(damaged)), len(people)))
    return Unlabelled(torch.cat(images), torch.cat(insides), tuple(numbers))
