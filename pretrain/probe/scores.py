"""From frozen features to figures with intervals and controls; pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pretrain.probe.config import ProbeConfig
from pretrain.probe.data import Labelled
from pretrain.probe.features import standardise
from voxscale.metrics.bootstrap import mean_ci
from voxscale.metrics.dice import dice_per_label
from voxscale.metrics.effective_rank import effective_rank
from voxscale.metrics.embedding_std import embedding_std
from voxscale.metrics.jackknife import jackknife_ci
from voxscale.metrics.knn import nearest_examples, vote
from voxscale.metrics.linear_probe import linear_classify
from voxscale.seed import rng

GROUPS = 8
"""Parts of the unlabelled crops, of which one at a time is left out for intervals."""

RESAMPLES = 2000
"""Of the bootstrap."""

SHUFFLES = 5
"""Permutations of the labels whose results are averaged."""

Scores = dict[str, list[float]]
"""Dice of each subject under `plain` and the name of each control."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a probe.

    Attributes:
        value: It.
        low: Lower end of its 95 % interval; None where it has none.
        high: Upper end.
        controls: What it is where there is nothing to find, by name.
        members: Its value for each subject, if it is a mean over subjects.
    """

    value: float
    low: float | None = None
    high: float | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    members: tuple[float, ...] = ()


def dice_figures(
    examples: Float[Tensor, "n c"],
    queries: Float[Tensor, "m c"],
    widths: Sequence[int],
    data: Labelled,
    config: ProbeConfig,
    seed: int,
) -> dict[str, Figure]:
    """Dice of k nearest neighbours and of a linear map, cross-validated by subject.

    Dice is that of the lattice of queries, so of crops around labelled voxels, not of whole scans; it is averaged
    over the classes of a scan, then over the scans of a subject. Controls: `shuffled_labels`, for which the labels
    of the examples are permuted before anything is learnt from them, and `shuffled_features`, for which the
    features of each scan's queries are permuted.

    Args:
        examples: Features of `data.examples`.
        queries: Features of `data.queries`.
        widths: Features of each level, see `standardise`.
        data: Labels, scans, subjects and folds.
        config: Neighbours and shrinkage.
        seed: Of the permutations and the bootstrap.
    """
    cases: dict[str, dict[str, dict[int, float]]] = {"knn_dice": {}, "linear_dice": {}}
    known, asked = data.examples, data.queries
    tested = torch.tensor(data.folds)
    for fold in range(max(data.folds) + 1):
        learn, test = tested[known.case] != fold, tested[asked.case] == fold
        x, q = standardise(examples[learn], queries[test], widths)
        count = len(data.classes)
        true = known.label[learn]
        draw = rng(seed, "probe", "labels", fold)
        # Shuffled ones behind: classes that lie apart are each given one label, so that a single draw says little.
        labels = torch.stack([true, *(true[torch.from_numpy(draw.permutation(len(true)))] for _ in range(SHUFFLES))])
        labels = labels.to(x.device)
        near = nearest_examples(x, q, min(config.k, len(x)))
        found = {
            "knn_dice": [vote(each[near]).cpu() for each in labels],
            "linear_dice": [linear_classify(x, each, q, count, config.shrinkage).cpu() for each in labels],
        }
        for probe, (plain, *shuffled) in found.items():
            guesses = {"plain": [plain], "shuffled_labels": shuffled}
            guesses["shuffled_features"] = [_permuted(plain, asked.case[test], seed)]
            for kind, several in guesses.items():
                scores = [_dice(guess, asked.label[test], asked.case[test], count) for guess in several]
                means = {case: fmean(each[case] for each in scores) for case in scores[0]}
                cases[probe].setdefault(kind, {}).update(means)
    return {probe: _figure(by_subject, seed) for probe, by_subject in _subjects(cases, data.subjects).items()}


def _permuted(guess: Tensor, case: Int64[Tensor, " m"], seed: int) -> Tensor:
    """Guesses for permuted features of each scan, which are the permuted guesses."""
    out = guess.clone()
    for number in case.unique().tolist():
        own = (case == number).nonzero()[:, 0]
        order = torch.from_numpy(rng(seed, "probe", "features", number).permutation(len(own)))
        out[own] = guess[own[order]]
    return out


def _dice(guess: Tensor, label: Tensor, case: Tensor, classes: int) -> dict[int, float]:
    """Mean Dice over the classes of each scan that shows any."""
    out: dict[int, float] = {}
    for number in case.unique().tolist():
        own = case == number
        truth = label[own].numpy()
        present = [value for value in range(1, classes) if (truth == value).any()]
        each = dice_per_label(guess[own].numpy(), truth, present)
        if each:
            out[number] = fmean(value for value in each.values() if value is not None)
    return out


def _subjects(cases: Mapping[str, Mapping[str, Mapping[int, float]]], subjects: Sequence[int]) -> dict[str, Scores]:
    """Average over the scans of each subject, which are not independent of one another."""
    out: dict[str, Scores] = {}
    for probe, kinds in cases.items():
        for kind, found in kinds.items():
            people = {subjects[case] for case in found}
            means = [fmean(v for case, v in found.items() if subjects[case] == who) for who in sorted(people)]
            out.setdefault(probe, {})[kind] = means
    return out


def _figure(scores: Scores, seed: int) -> Figure:
    value, low, high = mean_ci(scores["plain"], seed, RESAMPLES)
    controls = {kind: fmean(values) for kind, values in scores.items() if kind != "plain"}
    return Figure(value, low, high, controls, tuple(scores["plain"]))


def spread_figures(embeddings: Float[Tensor, "n c"], groups: Int64[Tensor, " n"], seed: int) -> dict[str, Figure]:
    """Effective rank and deviation of embeddings; as control each component is permuted over the samples.

    Args:
        embeddings: One row per crop or voxel.
        groups: Number of the crop of each row: rows of one crop are left out together.
        seed: Of the permutation.
    """
    data = embeddings.double().cpu()
    parts = [data[groups % GROUPS == part] for part in range(min(GROUPS, len(groups.unique())))]
    draw = rng(seed, "probe", "components")
    order = torch.from_numpy(np.stack([draw.permutation(len(data)) for _ in range(data.shape[1])], axis=1))
    mixed = data.gather(0, order)
    statistics: dict[str, Callable[[Tensor], float]] = {"effective_rank": effective_rank, "std": embedding_std}
    out: dict[str, Figure] = {}
    for name, statistic in statistics.items():
        value, low, high = jackknife_ci(lambda some, of=statistic: of(torch.cat(list(some))), parts)
        out[name] = Figure(value, low, high, {"shuffled_features": statistic(mixed)})
    return out


def lines(figures: Mapping[str, Figure], untrained: Mapping[str, Figure], seed: int) -> dict[str, float]:
    """A row of metrics: every figure with interval, controls and, where it is known, the untrained network's.

    Args:
        figures: Of the network as it is, by name.
        untrained: The same of the network before its first step; empty if that is what `figures` are.
        seed: Of the bootstrap.

    Returns:
        `probe/NAME`, and as `probe/NAME.WHAT` what else is known: `low`, `high`, each control, `untrained`, `gain`
        (mean over subjects of the paired difference to the untrained network), `gain_low`, `gain_high`.
    """
    row: dict[str, float] = {}
    for name, one in figures.items():
        more: dict[str, float | None] = {"low": one.low, "high": one.high, **one.controls}
        if name in untrained:
            before = untrained[name]
            more |= {"untrained": before.value, "gain": one.value - before.value}
            if one.members and len(one.members) == len(before.members):
                pairs = [now - then for now, then in zip(one.members, before.members, strict=True)]
                _, more["gain_low"], more["gain_high"] = mean_ci(pairs, seed, RESAMPLES)
        row[f"probe/{name}"] = one.value
        row |= {f"probe/{name}.{what}": value for what, value in more.items() if value is not None}
    return row
