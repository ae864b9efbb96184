"""Entropies of the branches' heads, subject by subject."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.network import Said
from pretrain.probe.scores import GROUPS, RESAMPLES, Figure
from pretrain.scene import Scene
from voxscale.batch import Batch, Patch, collate
from voxscale.metrics.bootstrap import mean_ci
from voxscale.metrics.head_entropy import head_entropy
from voxscale.metrics.jackknife import jackknife_ci
from voxscale.stream.interface import Sample

HEAD_SAMPLES = 16
"""Samples of the training that heads are shown; more where a pass has more."""


class Told(Protocol):
    """A stream that says whom its samples show."""

    def sample(self, index: int, spare: int = 0) -> Sample:
        """See `voxscale.stream.interface.PatchStream`."""
        ...

    def subject(self, index: int, choice: int = 0) -> str:
        """Subject of a sample, or of a later choice in its place."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A scene, and whom it shows.

    Attributes:
        scene: As the training makes it.
        people: Subject of each sample.
        labelled: Subject of each labelled sample.
    """

    scene: Scene
    people: tuple[str, ...]
    labelled: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class HeadSums:
    """What a head says of the samples of a scene, summed over what it says of each.

    Attributes:
        people: Subject of each sample.
        count: Distributions of each sample.
        entropy: Sum of their entropies, each as a share of the largest.
        chance: Sum of the distributions.
        shuffled_entropy: As `entropy`, where features are permuted.
        shuffled_chance: As `chance`, likewise.
    """

    people: tuple[str, ...]
    count: Float[Tensor, " s"]
    entropy: Float[Tensor, " s"]
    chance: Float[Tensor, "s k"]
    shuffled_entropy: Float[Tensor, " s"]
    shuffled_chance: Float[Tensor, "s k"]


def read_shown(stream: Told, indices: Sequence[int]) -> tuple[Batch, tuple[str, ...]]:
    """Samples as a batch, and whom they show.

    Raises:
        DataError: As the stream does.
    """
    patches: list[Patch] = []
    people: list[str] = []
    for index in indices:
        found, damaged = stream.sample(index)
        patches += found
        people.append(stream.subject(index, len(damaged)))
    return collate(patches), tuple(people)


def head_sums(said: Said, people: Sequence[str]) -> HeadSums:
    """Sum by sample what a head says of a scene, on its device; the sums come to the host."""
    rows = said.samples

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(people), *values.shape[1:]).index_add(0, rows, values)

    own, shuffled = (scores.double().softmax(dim=1) for scores in (said.scores, said.shuffled))
    parts = [torch.ones_like(own[:, 0]), head_entropy(own), own, head_entropy(shuffled), shuffled]
    return HeadSums(tuple(people), *(summed(part).cpu() for part in parts))


def head_figures(sums: Sequence[HeadSums], seed: int) -> dict[str, Figure]:
    """How decided a head is (`entropy`) and how many of its outputs it uses (`usage`), see `head_entropy`.

    Each subject counts alike, however many samples show it. Entropy is the mean over subjects, with a bootstrap
    interval; usage belongs to all of them together: subjects, in groups, are left out one at a time. Both intervals
    end at 0 and 1. Control `shuffled_features`: what the head says where each feature is permuted.

    Args:
        sums: Of each scene.
        seed: Of the bootstrap.

    Returns:
        Figures by name; empty if nothing counts in any sample.
    """
    rows: dict[str, list[tuple[Tensor, ...]]] = {}
    for one in sums:
        for at, who in enumerate(one.people):
            parts = (one.entropy, one.chance, one.shuffled_entropy, one.shuffled_chance)
            if one.count[at] > 0:
                rows.setdefault(who, []).append((one.count[at], *(part[at] for part in parts)))
    if not rows:
        return {}
    totals = [[torch.stack(part).sum(dim=0) for part in zip(*own, strict=True)] for own in rows.values()]
    means = [[part / count for part in rest] for count, *rest in totals]
    entropy, chance, shuffled, shuffled_chance = (torch.stack(part) for part in zip(*means, strict=True))
    low, high = _usage_interval(chance)
    members = tuple(entropy.tolist())
    value, *ends = mean_ci(members, seed, RESAMPLES)
    controls = {"shuffled_features": float(shuffled.mean())}, {"shuffled_features": _usage(shuffled_chance)}
    return {
        "entropy": Figure(value, ends[0], ends[1], controls[0], members),
        "usage": Figure(_usage(chance), low, high, controls[1]),
    }


def _usage(chance: Float[Tensor, "s k"]) -> float:
    return float(head_entropy(chance.mean(dim=0, keepdim=True))[0])


def _usage_interval(chance: Float[Tensor, "s k"]) -> tuple[float | None, float | None]:
    """None where there is one subject."""
    groups = [chance[number::GROUPS] for number in range(min(GROUPS, len(chance)))]
    if len(groups) < 2:
        return None, None
    _, low, high = jackknife_ci(lambda some: _usage(torch.cat(list(some))), groups)
    assert low is not None
    assert high is not None
    return max(low, 0.0), min(high, 1.0)
