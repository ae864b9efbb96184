"""The report of a whole run: one static page and one machine-readable summary, made from files alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.report_data import Ledger, add_counts, data_section, left_out_text, read_ledger
from launch.report_pretext import pretext_section
from launch.report_probes import probes_section
from launch.report_results import headline_section, overlay_section, result_section, transfer_section
from launch.report_run import config_section, cost_section, curves_section, limits_section
from launch.report_text import ARMS, Results, fine_print, result_table, sentence
from voxscale.errors import DataError
from voxscale.files import write_json, write_text
from voxscale.report.page import render_page
from voxscale.report.table import duration

__all__ = ["ReportInputs", "fine_print", "result_table", "sentence", "summarise", "write_report"]

SYNTHETIC = (
    "All scans in this report are digital phantoms: synthetic volumes drawn by a program. No patient was scanned. The"
    " figures show that the pipeline works, not what it gains on real scans."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """Where the report finds what it tells of; formats are in docs/design.md.

    Attributes:
        title: Of the page.
        synthetic: Whether all scans are digital phantoms; the page then says so near the top.
        data_store: Store of unlabelled scans.
        task_store: Store of labelled scans.
        shards: Folder with `manifest.json`.
        pretrain_run: Folder with `config.json`, `metrics.jsonl` and, if saved, `preview.npz`.
        finetune_run: Folder with `config.json`, `results.json`, metrics per arm and `previews/`.
        seconds: Duration of each stage, in the order they ran.
        peak_rss_gb: Largest resident memory in GB.
        config_hash: Of the whole run.
        machine: Such as cpu, cores, memory, torch version and commit.
    """

    title: str
    synthetic: bool
    data_store: Path
    task_store: Path
    shards: Path
    pretrain_run: Path
    finetune_run: Path
    seconds: Mapping[str, float]
    peak_rss_gb: float
    config_hash: str
    machine: Mapping[str, object]


def write_report(out: Path, inputs: ReportInputs) -> Path:
    """Write `out/report/index.html` and `out/summary.json`.

    Returns:
        Path of the page.

    Raises:
        DataError: If a file it needs is missing or not JSON.
    """
    results = _read(inputs.finetune_run / "results.json")
    manifest = _read(inputs.shards / "manifest.json")
    ledgers = [
        read_ledger("unlabelled scans", inputs.data_store),
        read_ledger("labelled task", inputs.task_store),
    ]
    configs = {
        "Pretraining": _read(inputs.pretrain_run / "config.json"),
        "Fine-tuning": _read(inputs.finetune_run / "config.json"),
        "Input contract": manifest["contract"],
    }
    sections = [
        headline_section(results, add_counts(ledgers), duration(sum(inputs.seconds.values()))),
        result_section(results, left_out_text(manifest) if manifest.get("in_task") else ""),
        overlay_section(results, inputs.finetune_run / "previews"),
        pretext_section(inputs.pretrain_run),
        *([probes] if (probes := probes_section(inputs.pretrain_run)) is not None else []),
        curves_section(inputs.pretrain_run, inputs.finetune_run, ARMS),
        data_section(ledgers, manifest),
        transfer_section(results),
        cost_section(inputs.seconds, inputs.peak_rss_gb, inputs.machine, inputs.pretrain_run),
        config_section(configs, inputs.config_hash),
        limits_section(results, inputs.synthetic),
    ]
    notice = SYNTHETIC if inputs.synthetic else ""
    footer = f"Made by VoxScale from the files of the run alone. Config {inputs.config_hash}. Not for clinical use."
    page = out / "report" / "index.html"
    write_text(page, render_page(inputs.title, sections, notice=notice, footer=footer))
    write_json(out / "summary.json", summarise(results, ledgers, inputs))
    return page


def summarise(results: Results, ledgers: list[Ledger], inputs: ReportInputs) -> dict[str, Any]:
    """What `summary.json` holds: volumes, both arms, their difference, and the cost."""
    summary = results["summary"]
    stores = {key: ledger.counts() for key, ledger in zip(("data", "task"), ledgers, strict=True)}
    return {
        "volumes": {**add_counts(ledgers), "stores": stores},
        **{arm: {key: summary[arm][key] for key in ("dice_mean", "ci95", "per_label")} for arm in ARMS},
        "difference": dict(summary["difference"]),
        "classes": dict(results["classes"]),
        "sentence": sentence(results),
        "synthetic": inputs.synthetic,
        "seconds": dict(inputs.seconds),
        "peak_rss_gb": inputs.peak_rss_gb,
        "config_hash": inputs.config_hash,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        kind = type(error).__name__
        raise DataError(f"report.{path.name} must be a readable JSON file, not one that fails with {kind}") from None
