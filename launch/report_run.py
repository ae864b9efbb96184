"""What was trained and what it cost: curves, cost, configs, limits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.report_text import case_count
from voxscale.files import read_lines
from voxscale.report import charts, page
from voxscale.report.charts import Points
from voxscale.report.page import Section
from voxscale.report.table import duration, quantity, table

_SPEED = (
    "samples_per_s",
    "voxels_per_s",
    "tflops",
    "mfu",
    "data_wait",
    "save_wait",
    "probe_wait",
    "solver_share",
    "compute",
    "forward_share",
    "seconds",
)
_OF_RANKS = ("data_wait", "save_wait", "forward_share", "rss_gb", "gpu_gb")
_WORST = tuple(f"{name}_{what}" for name in _OF_RANKS for what in ("max", "rank"))
NOT_LOSSES = frozenset(("step", "lr", "grad_norm", "skipped", *_SPEED, "rss_gb", "gpu_gb", *_WORST))
"""Keys of a metrics line that are neither the loss, one of its terms nor watched."""

WATCHED = "pretext_"
"""How the keys of watched figures start: shares from 0 to 1 that no gradient comes from."""

PROBES = "probe/"
"""How the keys of probes start."""


def curves_section(pretrain_run: Path, finetune_run: Path, arms: Sequence[str]) -> Section:
    """Losses of pretraining and of both arms of fine-tuning; how well the pretext task is solved."""
    rows = read_lines(pretrain_run / "metrics.jsonl")
    figures = [*_pretraining_charts(rows), *_finetuning_charts(finetune_run, arms)]
    if not figures:
        return Section("Curves", page.paragraph("No metrics were written."))
    note = page.paragraph(
        "Thin: as logged. Thick: moving mean over a twentieth of the points; for fine-tuning, of the mean over folds"
        " and seeds. A lower training loss is not yet a better segmentation: see Result for held-out cases.",
        "note",
    )
    return Section("Curves", page.grid(page.chart(svg) for svg in figures) + note)


def _pretraining_charts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Losses in one chart; in another, as they run from 0 to 1, the figures that are watched."""
    keys = {key for row in rows for key in row if not key.startswith(PROBES)}
    names = ["loss", *sorted(keys - NOT_LOSSES - {"loss"})]
    lines = {name: points for name in names if (points := _points(rows, name))[0]}
    losses = {name: points for name, points in lines.items() if not name.startswith(WATCHED)}
    watched = {name.replace("_", " "): points for name, points in lines.items() if name.startswith(WATCHED)}
    figures: list[str] = []
    if losses:
        rate = _points(rows, "lr")
        alt = "Pretraining losses"
        if "loss" in losses:
            alt = f"Pretraining loss from {losses['loss'][1][0]:.3g} to {losses['loss'][1][-1]:.3g}"
        look = {"name": "pretraining", "title": "Pretraining", "alt": alt}
        figures.append(charts.loss_curves(losses, rate if rate[0] else None, **look))
    if watched:
        alt = "At the end of pretraining: " + ", ".join(f"{name} {v[-1]:.2f}" for name, (_, v) in watched.items())
        title = "Pretext task, 1 is solved"
        figures.append(charts.share_curves(watched, name="watched", title=title, alt=alt))
    return figures


def _finetuning_charts(run: Path, arms: Sequence[str]) -> list[str]:
    files = {arm: sorted((run / arm).glob("seed-*/fold-*/metrics.jsonl")) for arm in arms}
    losses = {arm: [p for f in files[arm] if (p := _points(read_lines(f), "loss"))[0]] for arm in arms}
    if not any(losses.values()):
        return []
    alt = "Training loss of " + " and ".join(
        f"{arm}, at the end {np.mean([values[-1] for _, values in runs]):.3g}" for arm, runs in losses.items() if runs
    )
    return [charts.arm_curves(losses, name="finetuning", title="Fine-tuning, training loss", alt=alt)]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Steps and finite values of one key."""
    kept = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float) and np.isfinite(row[key])]
    return [float(step) for step, _ in kept], [float(value) for _, value in kept]


def cost_section(
    seconds: Mapping[str, float], peak_rss_gb: float, machine: Mapping[str, object], pretrain_run: Path
) -> Section:
    """Time per stage, throughput, memory and the machine.

    Args:
        seconds: Of each stage.
        peak_rss_gb: Largest resident memory in GB.
        machine: Such as cpu, cores, memory, torch version and commit.
        pretrain_run: Whose metrics hold the throughput.
    """
    total = sum(seconds.values())
    rows = [[stage, duration(s), f"{s / max(total, 1e-9):.0%}"] for stage, s in seconds.items()]
    rows.append(["total", duration(total), "100%"])
    metrics = read_lines(pretrain_run / "metrics.jsonl")
    rates = {key: _points(metrics, key)[1] for key in ("voxels_per_s", "samples_per_s")}
    median = {key: float(np.median(values)) if values else None for key, values in rates.items()}
    tiles = page.tiles(
        [
            (duration(total), "Time", "all stages"),
            (quantity(median["voxels_per_s"]), "Voxels per second", "pretraining, median"),
            (quantity(median["samples_per_s"]), "Samples per second", "pretraining, median"),
            (f"{peak_rss_gb:.1f} GB", "Peak memory", "resident"),
        ]
    )
    specs = [[key.replace("_", " "), str(strip_paths(str(value)))] for key, value in machine.items()]
    tables = [
        table("Time per stage", ["Stage", "Time", "Share"], rows, strong=[len(rows) - 1]),
        table("Machine", ["What", "Value"], specs, text=(0, 1)),
    ]
    return Section("Cost", tiles + page.grid(tables))


def config_section(configs: Mapping[str, object], config_hash: str) -> Section:
    """The exact settings, folded away, without the folders they name.

    Args:
        configs: Plain values under a title each.
        config_hash: Of the whole run.
    """
    parts = [page.folded(title, page.code(strip_paths(value))) for title, value in configs.items()]
    return Section(
        "Settings", "\n".join(parts), f"Every setting of this run, hash {config_hash}. Paths are cut to names."
    )


def strip_paths(value: Any) -> Any:
    """Cut every path in plain values to its last part, so that the page does not tell where things lie."""
    if isinstance(value, str):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    if isinstance(value, Mapping):
        return {strip_paths(key): strip_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strip_paths(part) for part in value]
    return value


def limits_section(results: Mapping[str, Any], synthetic: bool) -> Section:
    """What must not be read out of this page."""
    items = [
        "Not for clinical use. Nothing here has been validated for diagnosis or treatment, and no person has reviewed"
        " the predictions.",
        f"One network, one task, {case_count(results, 'labelled')}. Another task, scanner or hospital may give another"
        " answer.",
        f"Both arms had {results['steps']} steps per fold. With more steps or more labels the difference may shrink,"
        " vanish or turn.",
        "Dice measures overlap only. It says little about borders, small lesions or whether a finding was missed.",
        "A label predicted in a case whose reference does not show it is not counted against either arm, and cases"
        " without any labelled voxel are refused at ingest: false alarms of a whole structure are not measured.",
        "Intervals and p values describe these cases and seeds, not a population of patients.",
    ]
    if synthetic:
        items.insert(
            1, "All scans are digital phantoms. They show that every part works together, not what real scans gain."
        )
    return Section("What this is not", page.bullets(items))
