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


def by_subject(scores: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Average over the cases of each subject, which are not independent of one another."""
    subjects = {row["case"]: row["subject"] for row in rows}
    values: dict[str, list[float]] = {}
    for case in sorted(scores):
        values.setdefault(subjects[case], []).append(scores[case])
    return [fmean(found) for found in values.values()]  # in the order of the subjects' first cases


def _mean(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"dice_mean": None, "ci95": [None, None]}
    found = mean_ci(values, 0)
    return {"dice_mean": found.mean, "ci95": [found.low, found.high]}


def _arm(rows: Sequence[Mapping[str, Any]], arm: str, labels: Sequence[str]) -> dict[str, Any]:
    each = {label: _mean(by_subject(by_case(rows, arm, label), rows)) for label in labels}
    return _mean(by_subject(by_case(rows, arm, None), rows)) | {"per_label": each}


def summarise_arm(rows: Sequence[Mapping[str, Any]], arm: str, labels: Sequence[str]) -> dict[str, Any]:
    """Summary of one arm alone, under its name."""
    return {arm: _arm(rows, arm, labels)}


def _differences(rows: Sequence[Mapping[str, Any]], label: str | None) -> dict[str, float]:
    scratch, pretrained = (by_case(rows, arm, label) for arm in ARMS)
    return {case: pretrained[case] - scratch[case] for case in scratch if case in pretrained}


def summarise(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Summaries of both arms and of their paired difference.

    Seeds are averaged within a case and cases within a subject; intervals are
    95 % bootstrap intervals over subjects, and the test flips the signs of the
    subjects' differences.
    """
    cases = _differences(rows, None)
    differences = by_subject(cases, rows)
    test = paired_test(differences, 0)
    difference = _mean(differences) | {
        "per_label": {label: _mean(by_subject(_differences(rows, label), rows)) for label in labels},
        "p_value": test.p_value,
        "least_p": test.least_p,
        "n_cases": len(cases),
        "n_subjects": test.n,
        "n_seeds": len(seeds),
    }
    return {arm: _arm(rows, arm, labels) for arm in ARMS} | {"difference": difference}
