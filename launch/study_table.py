"""The table of a study: per number of labelled subjects every pretext task against scratch, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any

from finetune.summary import by_case, summarise, summarise_arm
from voxscale.files import write_json, write_text
from voxscale.metrics.holm import holm
from voxscale.report import charts, page
from voxscale.report.page import Section, render_page
from voxscale.report.table import MINUS, decimal, duration, interval, p_text, table

SCRATCH = "scratch"

LEVEL = 0.05
"""A difference counts as shown only where the corrected p value stays below this and its interval excludes 0."""

HEAD = (
    "Start",
    "Dice",
    "95 % interval",
    "Difference",
    "95 % interval",
    "p",
    "p (Holm)",
    "Of each seed",
    "Time of a cell",
)


BEYOND = ("Subjects", "Start", "Difference", "95 % interval", "p", "p (Holm)", "Of each seed")

STRUCTURES = ("Subjects", "Start", "Structure", "Dice", "95 % interval", "Difference", "95 % interval")


@dataclass
class Study:
    """What the cells have found so far.

    Attributes:
        task: Name of the task's folder.
        steps: Fine-tuning steps of each training.
        folds: Of the cross-validation.
        machine: What it ran on.
        batch: Samples of a fine-tuning step.
        rate: Peak learning rate of fine-tuning.
        jobs: Trainings at a time, which shared the machine.
        control: The start from a pretraining with nothing to learn, with which others are compared too; "" for none.
        classes: Names by label.
        rows: Rows of `results.json` by number of subjects, start and seed.
        seconds: Duration of each cell by start and number of subjects.
        pretraining: By name: steps, batch and duration of each run.
        missing: Why each training that is not done is not.
    """

    task: str
    steps: int
    folds: int
    machine: Mapping[str, object]
    batch: int = 0
    rate: float = 0.0
    jobs: int = 1
    control: str = ""
    classes: dict[str, str] = field(default_factory=dict)
    rows: dict[int, dict[str, dict[int, list[dict[str, Any]]]]] = field(default_factory=dict)
    seconds: dict[str, dict[int, dict[int, float]]] = field(default_factory=dict)
    pretraining: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def pretrained(self, name: str, seconds: float, steps: int, batch: int) -> None:
        """Remember a pretraining."""
        known = self.pretraining.setdefault(name, {"steps": steps, "batch": batch, "seconds": []})
        known["seconds"].append(seconds)

    def add(self, count: int, start: str, seed: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """Take in the cell of one number of subjects, one start and one seed, in any order."""
        self.rows.setdefault(count, {}).setdefault(start, {})[seed] = rows
        self.seconds.setdefault(start, {}).setdefault(count, {})[seed] = seconds


def summary(study: Study) -> dict[str, Any]:
    """Every comparison with scratch, and with the control if there is one, corrected for their number.

    Compared are the seeds that both have, seed with seed and case with case.
    Seeds are averaged within a case and cases within a subject; intervals are
    bootstrap intervals over subjects, the test flips the signs of the subjects'
    differences, and its p values are corrected over the whole table (Holm 1979), for comparisons with the control by
    themselves.

    Returns:
        As written to `study.json`: `cells`, one per number of subjects and start, and what they rest on.
    """
    labels = sorted(study.classes, key=int)
    order = [SCRATCH, *study.pretraining]
    cells: list[dict[str, Any]] = []
    for count, starts in sorted(study.rows.items()):
        for name in sorted(starts, key=lambda each: (order.index(each) if each in order else len(order), each)):
            seeds = sorted(starts[name])
            times = [round(study.seconds[name][count][seed], 1) for seed in seeds]
            cell: dict[str, Any] = {"subjects": count, "start": name, "seeds": seeds, "seconds": times}
            cells.append(cell | _scores(starts, name, labels, study.control))
    for kind in ("difference", "beyond_control"):
        compared = [cell[kind] for cell in cells if kind in cell]
        for difference, corrected in zip(compared, holm([d["p_value"] for d in compared]), strict=True):
            difference["p_holm"] = corrected
    pretraining = {
        name: known | {"seconds": [round(t, 1) for t in known["seconds"]]}
        for name, known in sorted(study.pretraining.items())
    }
    return {
        "task": study.task,
        "classes": study.classes,
        "folds": study.folds,
        "steps": study.steps,
        "batch": study.batch,
        "rate": study.rate,
        "jobs": study.jobs,
        "control": study.control,
        "pretraining": pretraining,
        "cells": cells,
        "missing": dict(sorted(study.missing.items())),
        "machine": dict(study.machine),
    }


def _scores(
    starts: Mapping[str, Mapping[int, list[dict[str, Any]]]], name: str, labels: Sequence[str], control: str
) -> dict[str, Any]:
    """Dice of one start over its seeds, and its differences over the seeds that both have."""
    own = [row for _, rows in sorted(starts[name].items()) for row in rows]
    arm = SCRATCH if name == SCRATCH else "pretrained"
    found = summarise_arm(own, arm, labels)[arm]
    for kind, other in (("difference", SCRATCH), ("beyond_control", control)):
        if name not in (SCRATCH, other) and (change := _compare(starts.get(other, {}), starts[name], labels)):
            found[kind] = change
    return found


def _compare(
    before: Mapping[int, list[dict[str, Any]]], after: Mapping[int, list[dict[str, Any]]], labels: Sequence[str]
) -> dict[str, Any] | None:
    """The paired difference of two starts; None without a seed that both have."""
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return None
    first = [row | {"arm": SCRATCH} for seed in shared for row in before[seed]]
    second = [row for seed in shared for row in after[seed]]
    difference = summarise([*first, *second], labels, shared)["difference"]
    return difference | {"by_seed": [_difference(first, second, seed) for seed in shared]}


def _difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], seed: int) -> float:
    """Mean difference over the cases of one seed alone."""
    before = by_case([row for row in first if row["seed"] == seed], SCRATCH, None)
    after = by_case([row for row in second if row["seed"] == seed], "pretrained", None)
    return fmean(after[case] - before[case] for case in before if case in after)


def sentence(found: Mapping[str, Any]) -> str:
    """Which of the comparisons stand after the correction, in plain words."""
    said = _said(found, "difference", "training from scratch")
    if not found["control"]:
        return said
    name = f"the control {found['control']}, a pretraining with nothing to learn,"
    return f"{said} {_said(found, 'beyond_control', name)}"


def headline(found: Mapping[str, Any]) -> str:
    """How many of the comparisons stand."""
    kinds = [("difference", "training from scratch"), ("beyond_control", f"the control {found['control']}")]
    counts = []
    for kind, other in kinds[: 2 if found["control"] else 1]:
        compared = [cell[kind] for cell in found["cells"] if kind in cell]
        counts.append(f"{sum(map(_stands, compared)) or 'none'} of {len(compared)} comparisons with {other}")
    text = " and ".join(counts)
    return f"{text[0].upper()}{text[1:]} show a difference"


def _said(found: Mapping[str, Any], kind: str, other: str) -> str:
    compared = [cell for cell in found["cells"] if kind in cell]
    shown = [cell for cell in compared if _stands(cell[kind])]
    if not shown:
        return f"None of {len(compared)} comparisons with {other} shows a difference."
    words = [
        f"{cell['start']} with {cell['subjects']} subjects"
        f" ({decimal(cell[kind]['dice_mean'], sign=True).replace(MINUS, '-')})"
        for cell in shown
    ]
    return f"{len(shown)} of {len(compared)} comparisons with {other} differ: {', '.join(words)}."


def _stands(difference: Mapping[str, Any]) -> bool:
    low, high = difference["ci95"]
    return difference["p_holm"] < LEVEL and low is not None and (low > 0 or high < 0)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[int, list[str]]]:
    for cell in found["cells"]:
        difference = cell.get("difference")
        own = [cell["start"], decimal(cell["dice_mean"]), interval(cell["ci95"])]
        own += [""] * 5 if difference is None else _change(difference)
        yield cell["subjects"], [*own, duration(fmean(cell["seconds"]))]


def _change(difference: Mapping[str, Any]) -> list[str]:
    own = [decimal(difference["dice_mean"], sign=True), interval(difference["ci95"])]
    own += [p_text(difference[p]).removeprefix("p = ") for p in ("p_value", "p_holm")]
    return [*own, ", ".join(decimal(value, sign=True) for value in difference["by_seed"])]


def _beyond(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Differences to the control."""
    for cell in found["cells"]:
        if "beyond_control" in cell:
            yield [str(cell["subjects"]), cell["start"], *_change(cell["beyond_control"])]


def _structures(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Every structure by itself: Dice and difference, each with its interval."""
    for cell in found["cells"]:
        for label, name in sorted(found["classes"].items(), key=lambda item: int(item[0])):
            own = cell["per_label"][label]
            line = [str(cell["subjects"]), cell["start"], name, decimal(own["dice_mean"]), interval(own["ci95"])]
            if "difference" in cell:
                change = cell["difference"]["per_label"][label]
                yield [*line, decimal(change["dice_mean"], sign=True), interval(change["ci95"])]
            else:
                yield [*line, "", ""]


def fine_print(found: Mapping[str, Any]) -> list[str]:
    """What the figures rest on, and what is missing."""
    seeds = sorted({seed for cell in found["cells"] for seed in cell["seeds"]})
    cases = sorted({cell["difference"]["n_cases"] for cell in found["cells"] if "difference" in cell})
    trained = ", ".join(
        f"{name} {known['steps']} steps of {known['batch']} ({duration(fmean(known['seconds']))})"
        for name, known in found["pretraining"].items()
    )
    machine = found["machine"]
    card = f" {machine['gpu']}," if machine.get("gpu") else ""
    return [
        f"Task {found['task']}: {' or '.join(map(str, cases))} test cases, {found['folds']} folds, seeds"
        f" {', '.join(map(str, seeds))}; {found['steps']} fine-tuning steps of {found['batch']} patches in every cell.",
        f"Pretraining: {trained or 'none'}.",
        "A seed gives all starts the same training cases, patches, order, augmentation and first weights of what is not"
        f" transferred. The peak learning rate is {found['rate']:g} for all alike and was tuned for none.",
        "Dice is averaged over labels, seeds and the cases of a subject; 95 % bootstrap intervals over subjects; paired"
        " sign-flip test over subjects, corrected over all comparisons of a table (Holm). Cases of one fold share a"
        " model, so intervals may be too narrow; the differences of single seeds show how far trainings spread.",
        f"Machine:{card} {machine.get('cpu')}, {machine.get('cores')} cores, {found['jobs']} trainings at a time,"
        f" commit {machine.get('commit')}.",
        _missing(found["missing"]),
    ]


def _missing(missing: Mapping[str, str]) -> str:
    if not missing:
        return "Missing: nothing."
    reasons: dict[str, list[str]] = {}
    for name, why in missing.items():
        reasons.setdefault(shorten(why, 160, placeholder=" ..."), []).append(name)
    return "Missing: " + "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items()) + "."


def markdown(found: Mapping[str, Any]) -> str:
    """The whole study as a page of Markdown."""
    out = [f"# {found['task']}", "", sentence(found), ""]
    out += ["| Subjects | " + " | ".join(HEAD) + " |", "|---" * (len(HEAD) + 1) + "|"]
    out += [f"| {count} | {' | '.join(cells)} |" for count, cells in _lines(found)]
    if found["control"]:
        out += _markdown_table(f"Beyond {found['control']}", BEYOND, _beyond(found))
    out += ["", *(f"- {text}" for text in fine_print(found))]
    return "\n".join([*out, *_markdown_table("Structures", STRUCTURES, _structures(found)), ""])


def _markdown_table(title: str, head: Sequence[str], lines: Iterator[list[str]]) -> list[str]:
    start = ["", f"## {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*start, *(f"| {' | '.join(line)} |" for line in lines)]


def write_study(out: Path, study: Study) -> Path:
    """Write `study.json`, `study.md` and the page; returns the page's path."""
    found = summary(study)
    write_json(out / "study.json", found)
    write_text(out / "study.md", markdown(found))
    texts = [sentence(found), *fine_print(found)]
    sections = [Section("In short", "".join(page.paragraph(text) for text in texts), headline(found))]
    for count in sorted(study.rows):
        rows = [cells for subjects, cells in _lines(found) if subjects == count]
        html = table(f"Dice after training on {count} subjects", HEAD, rows, text=(0, 7))
        drawn = [
            (cell["start"], cell["difference"]["dice_mean"], *cell["difference"]["ci95"])
            for cell in found["cells"]
            if cell["subjects"] == count and "difference" in cell and cell["difference"]["ci95"][0] is not None
        ]
        if drawn:
            alt = (
                f"Difference to scratch and its 95 % interval per pretext task, {count} subjects; figures in the table"
            )
            title = f"{count} labelled subjects"
            svg = charts.forest(drawn, name=f"study-{count}", title=title, alt=alt, mean=False)
            html += page.chart(svg, "Right of zero: in favour of pretraining. Bars are 95 % intervals.")
        sections.append(Section(f"{count} subjects", html))
    if study.control:
        text = (
            "What is left of the differences when the start is compared with a pretraining that had nothing to learn."
        )
        beyond = table(f"Difference to {study.control}", BEYOND, list(_beyond(found)), text=(0, 1, 6))
        sections.append(Section(f"Beyond {study.control}", page.paragraph(text) + beyond))
    each = table("Dice of each structure", STRUCTURES, list(_structures(found)), text=(0, 1, 2))
    sections.append(Section("Structures", each))
    path = out / "report" / "index.html"
    write_text(path, render_page(f"VoxScale: which pretraining helps on {found['task']}", sections))
    return path
