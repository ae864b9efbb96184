"""The result of fine-tuning in words and plain text: the sentence, its fine print and the table."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from voxscale.report.table import MINUS, MISSING, decimal, interval, p_text

ARMS = ("scratch", "pretrained")

LEVEL = 0.05
"""A difference counts as shown only where the test stays below this p value."""

Results = Mapping[str, Any]
"""`results.json` of a fine-tuning run, see docs/design.md."""


def sentence(results: Results) -> str:
    """What pretraining did to the mean Dice, as far as the numbers bear it out.

    Raised or lowered needs both, an interval that excludes 0 and a test below
    `LEVEL`. Where no outcome could have brought the test below it, there are too
    few cases to tell. All else is no measurable change, as is an exact tie in
    every case, which brings the least attainable p to 1 however many there are.

    Plain ASCII, so that any terminal can show it.
    """
    summary = results["summary"]
    difference = summary["difference"]
    bounds = known_bounds(difference["ci95"])
    places = digits(results)
    before, after = (decimal(summary[arm]["dice_mean"], places) for arm in ARMS)
    span = f"95 % interval {interval(bounds, places)}" if bounds else "no interval: too few cases"
    change = decimal(difference["dice_mean"], places, sign=True)
    proof = f"(difference {change}, {span}, {p_text(difference['p_value'])}, {case_count(results)})".replace(MINUS, "-")
    if too_few(results) and bounds != (0, 0):
        told = f"mean Dice {before} from scratch, {after} pretrained"
        return f"Too few cases to tell whether pretraining helped: {told} {proof}."
    if rejects(results) and bounds and (bounds[0] > 0 or bounds[1] < 0):
        verb = "raised" if bounds[0] > 0 else "lowered"
        return f"Pretraining {verb} mean Dice from {before} to {after} {proof}."
    return f"Pretraining did not change mean Dice measurably: {before} from scratch, {after} pretrained {proof}."


def fine_print(results: Results) -> str:
    """The test and what it rests on: least attainable p, cases, subjects, folds, seeds and steps; plain ASCII."""
    difference = results["summary"]["difference"]
    cases, subjects = counts(results)
    unit = "cases" if subjects == cases else "subjects"
    own = " (one per subject)" if subjects == cases else ""
    average = "" if subjects == cases else " Cases of one subject are averaged before means, intervals and test."
    seeds = results["seeds"]
    return (
        f"Paired sign-flip test over {unit}: {p_text(difference['p_value'])}; least p attainable with so many {unit}:"
        f" {difference['least_p']:.2g}. {case_count(results)}{own}, {_plural(results['folds'], 'fold')},"
        f" {_plural(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), {results['steps']} steps per fold and"
        f" arm.{average}"
    )


def counts(results: Results) -> tuple[int, int]:
    """Cases, and the subjects they come from: as many where the file does not tell."""
    difference = results["summary"]["difference"]
    return difference["n_cases"], difference.get("n_subjects", difference["n_cases"])


def case_count(results: Results, adjective: str = "") -> str:
    """Such as `12 cases`, or `12 cases of 5 subjects` where some subjects have several."""
    cases, subjects = counts(results)
    text = _plural(cases, f"{adjective} case".strip())
    return text if subjects == cases else f"{text} of {_plural(subjects, 'subject')}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def too_few(results: Results) -> bool:
    """Whether the test could not have fallen below `LEVEL`, whatever the size of the differences."""
    return results["summary"]["difference"]["least_p"] >= LEVEL


def rejects(results: Results) -> bool:
    """Whether the test fell below `LEVEL`."""
    return results["summary"]["difference"]["p_value"] < LEVEL


def known_bounds(bounds: Any) -> tuple[float, float] | None:
    """Both ends of an interval, or None if one is not known (a single case has no spread)."""
    if bounds is None or any(b is None or not np.isfinite(b) for b in bounds):
        return None
    return float(bounds[0]), float(bounds[1])


def digits(results: Results) -> int:
    """Two decimals, or three where two would hide a sign or not add up."""
    summary = results["summary"]
    before, after = (summary[arm]["dice_mean"] for arm in ARMS)
    change = summary["difference"]["dice_mean"]
    hidden = any(0 < abs(v) < 0.005 for v in (change, *(known_bounds(summary["difference"]["ci95"]) or ())))
    adds_up = abs(round(after, 2) - round(before, 2) - round(change, 2)) < 0.001
    return 2 if adds_up and not hidden else 3


def entries(results: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Name, scratch, pretrained and difference of each label in the order of their numbers, then of the mean."""
    summary = results["summary"]
    parts = [summary[key] for key in (*ARMS, "difference")]
    for key in sorted(results["classes"], key=int):
        missing = {"dice_mean": None, "ci95": None}
        scratch, pretrained, difference = (part["per_label"].get(key, missing) for part in parts)
        yield results["classes"][key], scratch, pretrained, difference
    yield "mean", parts[0], parts[1], parts[2]


def result_table(results: Results) -> str:
    """The result as plain ASCII text for a terminal: one row per label and one for the mean."""
    head = ("Dice", *ARMS, "difference", "95 % interval")
    rows = [
        (name, *(decimal(part["dice_mean"]) for part in arms), decimal(d["dice_mean"], sign=True), interval(d["ci95"]))
        for name, *arms, d in entries(results)
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, lines[1])
    return "\n".join(lines).replace(MINUS, "-").replace(MISSING, "-")
