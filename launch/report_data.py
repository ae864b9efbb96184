"""Which scans went in and which did not, and why."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxscale.contract import InputContract
from voxscale.files import read_lines
from voxscale.report import charts, page
from voxscale.report.page import Section
from voxscale.report.planes import CONVENTION, three_planes
from voxscale.report.table import quantity, table
from voxscale.store import Store, open_store

STATUSES = ("accepted", "rejected", "quarantined")
PREVIEWS = 6
"""Accepted scans shown per store."""

_PATH = re.compile(r"(?<![\w)])(?:[A-Za-z]:)?[/\\]\S+")


@dataclass(frozen=True)
class Ledger:
    """What a store keeps of every input it was given.

    Attributes:
        name: What the store is for, in words.
        path: Of the store.
        rows: As in docs/design.md.
    """

    name: str
    path: Path
    rows: list[dict[str, Any]]

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """Rows of accepted images."""
        return [row for row in self.rows if row["kind"] == "image" and row["status"] == "accepted"]

    def counts(self) -> dict[str, int]:
        """How many images were found, accepted, rejected and quarantined."""
        by_status = Counter(row["status"] for row in self.rows if row["kind"] == "image")
        return {"found": by_status.total(), **{status: by_status[status] for status in STATUSES}}


def read_ledger(name: str, store: Path) -> Ledger:
    """Read the ledger of a store."""
    return Ledger(name, store, read_lines(store / "ledger.jsonl"))


def add_counts(ledgers: list[Ledger]) -> dict[str, int]:
    """Counts of several stores together."""
    parts = [ledger.counts() for ledger in ledgers]
    return {key: sum(part[key] for part in parts) for key in ("found", *STATUSES)}


def data_section(ledgers: list[Ledger], manifest: Mapping[str, Any]) -> Section:
    """Counts, geometry, refused scans with reasons, shards and pictures.

    Args:
        ledgers: Of the unlabelled and the labelled store.
        manifest: `manifest.json` of the shards.
    """
    total = add_counts(ledgers)
    lead = (
        f"{total['found']} scans found: {total['accepted']} accepted, {total['rejected']} rejected and"
        f" {total['quarantined']} set aside for a person to look at. Ids are hashes; nothing here names a patient."
    )
    html = _counts_table(ledgers) + page.paragraph(_shards_text(manifest)) + _geometry(ledgers) + _refused(ledgers)
    for ledger in ledgers:
        if ledger.accepted:
            html += page.heading(f"Scans as the network sees them: {ledger.name}") + _pictures(ledger)
    return Section("Data", html + page.paragraph(CONVENTION, "note"), lead)


def _counts_table(ledgers: list[Ledger]) -> str:
    rows = []
    for ledger in ledgers:
        counts, kinds = ledger.counts(), Counter(row["entry"]["modality"] for row in ledger.accepted)
        size = sum(row["entry"]["bytes"] for row in ledger.accepted)
        numbers = [counts["found"], *(counts[s] for s in STATUSES), kinds["CT"], kinds["MR"]]
        rows.append([ledger.name, *map(str, numbers), f"{size / 1e6:.1f} MB"])
    head = ["Store", "Found", "Accepted", "Rejected", "Quarantined", "CT accepted", "MR accepted", "Size"]
    return table("Scans found", head, rows)


def _shards_text(manifest: Mapping[str, Any]) -> str:
    shards = f"{len(manifest['shards'])} shard{'' if len(manifest['shards']) == 1 else 's'}"
    return (
        f"Pretraining read {quantity(manifest['samples'])} bricks from {shards}, cut for patches of"
        f" {_times(manifest['patch'])} voxels (z, y, x); {manifest['skipped_air']} bricks of air were left out."
        f" {left_out_text(manifest)}"
    )


def left_out_text(manifest: Mapping[str, Any]) -> str:
    """How many unlabelled scans pretraining did not read because the task holds the same scan."""
    number = manifest.get("in_task", 0)
    if number == 1:
        return "1 unlabelled scan that is also in the task was left out of pretraining."
    return f"{number} unlabelled scans that are also in the task were left out of pretraining."


def _times(values: Sequence[float]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(f"{round(value, 2):g}" for value in values)


def _geometry(ledgers: list[Ledger]) -> str:
    """Spacing and shape per axis: least, median and largest as a table, every scan as a dot."""
    rows: list[list[str]] = []
    figures: list[str] = []
    for number, ledger in enumerate(ledgers):
        if not ledger.accepted:
            continue
        for key, unit, form in (("spacing", "mm", "{:.2f}"), ("shape", "voxels", "{:.0f}")):
            values = np.array([row["entry"][key] for row in ledger.accepted], dtype=np.float64)
            for axis, column in zip("zyx", values.T, strict=True):
                spread = (column.min(), np.median(column), column.max())
                rows.append([f"{ledger.name}, {key} along {axis} ({unit})", *(form.format(v) for v in spread)])
            svg = charts.strips(
                dict(zip("zyx", values.T.tolist(), strict=True)),
                name=f"{key}-{number}",
                title=f"{key.capitalize()}, {ledger.name}",
                unit=unit,
                alt=f"{key} of {len(values)} scans along z, y and x; figures in the table",
            )
            figures.append(page.chart(svg))
    folded = page.folded(
        "Spacing and shape in figures", table("Accepted scans", ["", "Least", "Median", "Largest"], rows)
    )
    caption = page.paragraph("One dot per accepted scan; the bar is the median. z: feet to head.", "note")
    return page.grid(figures) + caption + folded


def _refused(ledgers: list[Ledger]) -> str:
    rows = [
        [
            row["id"],
            ledger.name,
            row["kind"],
            row["status"],
            row["rule"] or "",
            _PATH.sub("(path)", row["reason"] or ""),
        ]
        for ledger in ledgers
        for row in ledger.rows
        if row["status"] != "accepted"
    ]
    if not rows:
        return page.paragraph("Nothing was refused.")
    head = ["Id", "Store", "Kind", "Status", "Rule", "Reason"]
    html = table("Refused inputs and why", head, rows, text=range(len(head)))
    return page.folded(f"{len(rows)} refused inputs and why", html) if len(rows) > 15 else html


def _pictures(ledger: Ledger) -> str:
    """A few accepted scans, taking turns between modalities, in the window of the contract."""
    store = open_store(ledger.path)
    contract = store.contract or InputContract()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in ledger.accepted:
        groups.setdefault(row["entry"]["modality"], []).append(row)
    ranked = sorted((place, kind, row["id"]) for kind, rows in groups.items() for place, row in enumerate(rows))
    chosen = [next(r for r in ledger.accepted if r["id"] == name) for _, _, name in ranked[:PREVIEWS]]
    key = page.class_legend(store.classes) if any(row["entry"]["label"] for row in chosen) else ""
    return key + page.grid((_picture(store, row, contract) for row in chosen), "three")


def _picture(store: Store, row: Mapping[str, Any], contract: InputContract) -> str:
    entry = row["entry"]
    volume = store.volume(row["id"])
    png = three_planes(
        volume.values(),
        volume.spacing,
        store.read_label(row["id"]) if entry["label"] else None,
        window=contract.window(entry["modality"], entry["percentiles"]),
    )
    text = f"{entry['modality']} {row['id']}: {_times(entry['shape'])} voxels of {_times(entry['spacing'])} mm"
    return page.picture(png, f"Three planes of scan {text}", text)
