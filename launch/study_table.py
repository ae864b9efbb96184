"""The table of a study: per number of labelled subjects every pretext task against scratch, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from finetune.summary import by_case, summarise
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


@dataclass
class Study:
    """What the cells have found so far.

    Attributes:
        task: Name of the task's folder.
        steps: Fine-tuning steps of each training.
        folds: Of the cross-validation.
        machine: What it ran on.
        classes: Names by label.
        rows: Rows of `results.json` by number of subjects, then by start.
        seconds: Duration of each cell by start and number of subjects.
        pretraining: By name: steps, batch and duration of each run.
        seeds: Those that are whole, by number of subjects.
    """

    task: str
    steps: int
    folds: int
    machine: Mapping[str, object]
    classes: dict[str, str] = field(default_factory=dict)
    rows: dict[int, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    seconds: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    pretraining: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: dict[int, list[int]] = field(default_factory=dict)

    def pretrained(self, name: str, seconds: float, steps: int, batch: int) -> None:
        """Remember a pretraining."""
        known = self.pretraining.setdefault(name, {"steps": steps, "batch": batch, "seconds": []})
        known["seconds"].append(seconds)

    def took(self, name: str, count: int, seconds: float) -> None:
        """Remember how long a cell took."""
        self.seconds.setdefault(name, {}).setdefault(count, []).append(seconds)

    def add(self, count: int, seed: int, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        """Take in all cells of one number of subjects and one seed."""
        self.seeds.setdefault(count, []).append(seed)
        for name, found in rows.items():
            self.rows.setdefault(count, {}).setdefault(name, []).extend(found)


def summary(study: Study) -> dict[str, Any]:
    """Every comparison with scratch, corrected for their number.

    Seeds are averaged within a case and cases within a subject; intervals are
    bootstrap intervals over subjects, the test flips the signs of the subjects'
    differences, and its p values are corrected over the whole table (Holm 1979).

    Returns:
        As written to `study.json`: `cells`, one per number of subjects and start, and what they rest on.
    """
    labels = sorted(study.classes, key=int)
    cells: list[dict[str, Any]] = []
    for count, starts in sorted(study.rows.items()):
        for name, rows in starts.items():
            times = study.seconds[name][count]
            cell: dict[str, Any] = {"subjects": count, "start": name, "seconds": [round(t, 1) for t in times]}
            if name == SCRATCH:
                found = summarise([*rows, *_as("pretrained", rows)], labels, study.seeds[count])
                cells.append(cell | found[SCRATCH])
                continue
            found = summarise([*starts[SCRATCH], *rows], labels, study.seeds[count])
            each = [_difference(starts[SCRATCH], rows, seed) for seed in study.seeds[count]]
            cells.append(cell | found["pretrained"] | {"difference": found["difference"] | {"by_seed": each}})
    compared = [cell["difference"] for cell in cells if "difference" in cell]
    for difference, corrected in zip(compared, holm([d["p_value"] for d in compared]), strict=True):
        difference["p_holm"] = corrected
    pretraining = {
        name: known | {"seconds": [round(t, 1) for t in known["seconds"]]} for name, known in study.pretraining.items()
    }
    return {
        "task": study.task,
        "classes": study.classes,
        "folds": study.folds,
        "steps": study.steps,
        "seeds": {str(count): seeds for count, seeds in sorted(study.seeds.items())},
        "pretraining": pretraining,
        "cells": cells,
        "machine": dict(study.machine),
    }


def _as(arm: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) | {"arm": arm} for row in rows]


def _difference(scratch: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], seed: int) -> float:
    """Mean difference over the cases of one seed alone."""
    before = by_case([row for row in scratch if row["seed"] == seed], SCRATCH, None)
    after = by_case([row for row in rows if row["seed"] == seed], "pretrained", None)
    return fmean(after[case] - before[case] for case in before if case in after)


def sentence(found: Mapping[str, Any]) -> str:
    """Which of the comparisons stand after the correction, in plain words."""
    compared = [cell for cell in found["cells"] if "difference" in cell]
    shown = [cell for cell in compared if _stands(cell["difference"])]
    if not shown:
        return f"None of {len(compared)} comparisons with training from scratch shows a difference."
    words = [
        f"{cell['start']} with {cell['subjects']} subjects"
        f" ({decimal(cell['difference']['dice_mean'], sign=True).replace(MINUS, '-')})"
        for cell in shown
    ]
    return f"{len(shown)} of {len(compared)} comparisons with training from scratch differ: {', '.join(words)}."


def _stands(difference: Mapping[str, Any]) -> bool:
    low, high = difference["ci95"]
    return difference["p_holm"] < LEVEL and low is not None and (low > 0 or high < 0)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[int, list[str]]]:
    for cell in found["cells"]:
        difference = cell.get("difference")
        own = [cell["start"], decimal(cell["dice_mean"]), interval(cell["ci95"])]
        if difference is None:
            own += [""] * 5
        else:
            own += [decimal(difference["dice_mean"], sign=True), interval(difference["ci95"])]
            own += [
                p_text(difference["p_value"]).removeprefix("p = "),
                p_text(difference["p_holm"]).removeprefix("p = "),
            ]
            own += [", ".join(decimal(value, sign=True) for value in difference["by_seed"])]
        yield cell["subjects"], [*own, duration(fmean(cell["seconds"]))]


def fine_print(found: Mapping[str, Any]) -> list[str]:
    """What the figures rest on."""
    seeds = sorted({seed for each in found["seeds"].values() for seed in each})
    cases = sorted({cell["difference"]["n_cases"] for cell in found["cells"] if "difference" in cell})
    trained = ", ".join(
        f"{name} {known['steps']} steps of {known['batch']} ({duration(fmean(known['seconds']))})"
        for name, known in found["pretraining"].items()
    )
    return [
        f"Task {found['task']}: {' or '.join(map(str, cases))} test cases, {found['folds']} folds, seeds"
        f" {', '.join(map(str, seeds))}, {found['steps']} fine-tuning steps in every cell.",
        f"Pretraining: {trained}.",
        "Dice is averaged over labels, seeds and the cases of a subject; 95 % bootstrap intervals over subjects; paired"
        " sign-flip test over subjects, corrected over all comparisons of the table (Holm). Cases of one fold share a"
        " model, so intervals may be too narrow; the differences of single seeds show how far trainings spread.",
        f"Machine: {found['machine'].get('cpu')}, {found['machine'].get('cores')} cores, commit"
        f" {found['machine'].get('commit')}.",
    ]


def markdown(found: Mapping[str, Any]) -> str:
    """The whole study as a page of Markdown."""
    out = [f"# {found['task']}", "", sentence(found), ""]
    out += ["| Subjects | " + " | ".join(HEAD) + " |", "|---" * (len(HEAD) + 1) + "|"]
    out += [f"| {count} | {' | '.join(cells)} |" for count, cells in _lines(found)]
    return "\n".join([*out, "", *(f"- {text}" for text in fine_print(found)), ""])


def write_study(out: Path, study: Study) -> Path:
    """Write `study.json`, `study.md` and the page; returns the page's path."""
    found = summary(study)
    write_json(out / "study.json", found)
    write_text(out / "study.md", markdown(found))
    sections = [Section("In short", "".join(page.paragraph(text) for text in fine_print(found)), sentence(found))]
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
    path = out / "report" / "index.html"
    write_text(path, render_page(f"VoxScale: which pretraining helps on {found['task']}", sections))
    return path
