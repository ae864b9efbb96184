"""From Dice per case to the answer: scratch, pretrained, difference, intervals, a paired test."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from voxscale.metrics.bootstrap import mean_ci
from voxscale.metrics.paired import paired_test

ARMS = ("scratch", "pretrained")


def by_case(rows: Sequence[Mapping[str, Any]], arm: str, label: str | None) -> dict[str, float]:
    """Score of each case in one arm, averaged over seeds first.

    Args:
        rows: One row per case, seed and arm, see docs/design.md.
        arm: `scratch` or `pretrained`.
        label: One label, or None for the mean over the labels that can be scored.
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["arm"] != arm:
            continue
        found = [v for k, v in row["dice"].items() if v is not None and label in (None, k)]
        if found:
            scores.setdefault(row["case"], []).append(fmean(found))
    return {case: fmean(values) for case, values in sorted(scores.items())}


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    if not values:
        return {"dice_mean": None, "ci95": [None, None]}
    found = mean_ci(values, seed)
    return {"dice_mean": found.mean, "ci95": [found.low, found.high]}


def _arm(rows: Sequence[Mapping[str, Any]], arm: str, labels: Sequence[str]) -> dict[str, Any]:
    return _mean(list(by_case(rows, arm, None).values()), 0) | {
        "per_label": {label: _mean(list(by_case(rows, arm, label).values()), 0) for label in labels}
    }


def _differences(rows: Sequence[Mapping[str, Any]], label: str | None) -> list[float]:
    scratch, pretrained = (by_case(rows, arm, label) for arm in ARMS)
    return [pretrained[case] - scratch[case] for case in scratch if case in pretrained]


def summarise(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Summaries of both arms and of their paired difference.

    Intervals are 95 % bootstrap intervals over cases; the test flips the signs
    of the paired differences.
    """
    differences = _differences(rows, None)
    test = paired_test(differences, 0)
    difference = _mean(differences, 0) | {
        "per_label": {label: _mean(_differences(rows, label), 0) for label in labels},
        "p_value": test.p_value,
        "least_p": test.least_p,
        "n_cases": test.n,
        "n_seeds": len(seeds),
    }
    return {arm: _arm(rows, arm, labels) for arm in ARMS} | {"difference": difference}
