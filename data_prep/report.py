"""What a store holds, as one static page: `python -m data_prep report STORE`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from data_prep.audit import AUDIT, DUPLICATES, read_twins
from data_prep.report_ledger import ADVICE, MOST_ROWS, Tally, tally
from data_prep.report_scans import Entries, by_kind, composition, intensities, samples
from data_prep.sweep import THUMBNAILS
from voxscale.config import config, parse
from voxscale.folder import open_folder
from voxscale.report.page import (
    Section,
    folded,
    heading,
    paragraph,
    render_page,
    thumbnails,
    tiles,
)
from voxscale.report.table import quantity, table
from voxscale.shard_reader import ShardReader
from voxscale.shards import open_manifest
from voxscale.store import Store, open_store

MOST_SHOWN = 24
"""Thumbnails of one rule, pairs of duplicates, dots of a chart times ten."""
MOST_TARS = 100
"""Tars that the page lists."""
MOST_ENTRIES = 20_000
"""Scans that tables and charts tell of; of more, every nth."""


def write_report(path: Path, shards: Path | None = None, out: Path | None = None) -> Path:
    """Write the page.

    Args:
        path: The store.
        shards: Shards packed from it, for their balance.
        out: The page; None puts it into the store.

    Returns:
        Where the page is.
    """
    store, counts = open_store(path), tally(path)
    entries, sampled = _some(store)
    sections = [
        _overview(counts, sampled),
        composition(entries, store),
        _ledger(counts, path),
        _duplicates(path),
        intensities(entries),
        samples(store, entries),
        _disk(entries, shards),
        _privacy(counts, entries),
    ]
    page = out or path / "report" / "index.html"
    footer = "Made by VoxScale from the store alone; it names no file and no person. Not for clinical use."
    html = render_page("VoxScale: what the store holds", sections, footer=footer)
    open_folder(page.parent).write(page.name, html.encode())
    return page


def _some(store: Store) -> tuple[Entries, str]:
    """The accepted scans, or so many of them, evenly spread, as a page can tell of."""
    keys = list(store.entries)
    step = -(-len(keys) // MOST_ENTRIES) or 1
    told = f"Tables and charts below the ledger tell of {len(keys[::step])} scans, one in {step}." if step > 1 else ""
    return {key: store.entries[key] for key in keys[::step]}, told


def _overview(counts: Tally, sampled: str) -> Section:
    found = sum(counts.images.values())
    size = counts.bytes
    accepted, rejected, held = (counts.images[name] for name in ("accepted", "rejected", "quarantined"))
    further = counts.parts["accepted"]
    lead = (
        f"{accepted} of {found} images are in the store; {rejected} were rejected and {held} wait for a decision "
        f"(each with its reason below)."
    )
    shown = [
        (
            f"{accepted}",
            "accepted",
            f"and {further} further volumes of the same inputs" if further else "of " + str(found),
        ),
        (f"{rejected}", "rejected", "unusable, each with a reason"),
        (f"{held}", "quarantined", "usable perhaps, after a decision"),
        (f"{len(counts.subjects)}", "subjects", "grouped by keyed hash"),
        (_bytes(size), "on disk", "compressed voxels and labels"),
    ]
    more = paragraph(f"{counts.labels} labels have no image or are second labels.", "note") if counts.labels else ""
    more += paragraph(sampled, "note") if sampled else ""
    return Section("Overview", tiles(shown) + more, lead)


def _bytes(n: float) -> str:
    return f"{quantity(n)}B" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def _ledger(counts: Tally, store: Path) -> Section:
    if not counts.rules:
        return Section("Ledger", paragraph("Nothing was rejected or held back."))
    rows = [
        [rule, status, str(n), *(ADVICE.get(rule, ("See the reasons below.", "")))]
        for (status, rule), n in counts.rules.most_common()
    ]
    html = table(
        "Why inputs are not in the store", ["Rule", "Status", "Rows", "Meaning", "What helps"], rows, text=(0, 1, 3, 4)
    )
    html += heading("By rule")
    for rule, found in sorted(counts.rows.items()):
        total = sum(n for (_, name), n in counts.rules.items() if name == rule)
        html += folded(f"{rule} ({total})", _rule(found, total, store))
    if counts.notes:
        lines = [[note, str(n)] for note, n in counts.notes.most_common(20)]
        html += heading("Decisions noted") + table("Decisions noted on the way", ["Note", "Scans"], lines)
    return Section("Ledger", html, "Open a rule to see its rows; no row is ever left out of the counts.")


def _rule(found: Sequence[dict[str, Any]], total: int, store: Path) -> str:
    """Pictures and rows of one rule."""
    shown = [row["id"] for row in found if row.get("thumbnail")]
    pictures = [(png, key) for key in shown[:MOST_SHOWN] if (png := _thumbnail(store, key))]
    html = thumbnails(pictures) if pictures else ""
    rows = [[row["id"], row["status"], row["reason"] or ""] for row in found]
    html += table("Rows of this rule", ["Id", "Status", "Reason"], rows, text=(0, 1, 2))
    if total > len(found):
        html += paragraph(f"{total - len(found)} more rows stand in the ledger; a page lists {MOST_ROWS}.", "note")
    return html


def _thumbnail(store: Path, key: str) -> bytes | None:
    return open_folder(store / THUMBNAILS).read_some([f"{key}.png"])[0]


def _duplicates(store: Path) -> Section:
    html, leads = "", []
    for name, what in ((DUPLICATES, "within the store"), (AUDIT, "shared with a task")):
        told = read_twins(store, name)
        if told is None:
            continue
        pairs = told["pairs"]
        leads.append(f"{len(pairs)} pairs {what}")
        if little := len(told["too_little"]):
            leads.append(f"{little} scans show too little to be compared")
        if not pairs:
            continue
        html += heading(f"Pairs {what}")
        cells: list[str] = []
        for pair in pairs[:MOST_SHOWN]:
            both = [(png, f"{key}") for key in (pair["a"], pair["b"]) if (png := _thumbnail(store, key))]
            score = paragraph(f"{pair['score']} places agree", "note")
            cells.append(f"<div>{thumbnails(both)}{score}</div>")
        html += '<div class="pair">' + "\n".join(cells) + "</div>"
        if len(pairs) > MOST_SHOWN:
            html += paragraph(f"{len(pairs) - MOST_SHOWN} more pairs stand in {name}.", "note")
    lead = "; ".join(leads) + "." if leads else "Near-duplicates were not looked for."
    return Section("Near-duplicates", html or paragraph("No pictures to show."), lead)


def _disk(entries: Entries, shards: Path | None) -> Section:
    rows: list[list[str]] = []
    for kind, some in by_kind(list(entries.values())):
        raw = sum(np.prod(e.shape, dtype=float) * e.channels * np.dtype(e.dtype).itemsize for e in some)
        kept = sum(e.bytes for e in some)
        rows.append([kind, _bytes(raw), _bytes(kept), f"{raw / max(kept, 1):.2f}"])
    html = table("Disk use", ["Modality", "Voxels", "Stored", "Ratio"], rows) if rows else ""
    if shards is not None:
        manifest = open_manifest(shards)
        lines, subjects = list[list[str]](), Counter[str]()
        reader = ShardReader(shards, manifest, keep=1)
        for line in manifest.shards:  # one index at a time: a large one is megabytes
            index = reader.index(line.name)
            if len(lines) < MOST_TARS:
                lines.append([index.name, str(len(index.samples)), _bytes(index.bytes), str(index.skipped_air)])
            subjects.update(sample.subject for sample in index.samples)
        html += table("Shards", ["Tar", "Bricks", "Size", "Left out as air"], lines)
        most = max(subjects.values()) / sum(subjects.values())
        text = f"{manifest.samples} bricks of {manifest.volumes} scans and {len(subjects)} subjects; "
        html += paragraph(text + f"the subject with most holds {100 * most:.1f} % of them.")
    return Section("Disk use", html or paragraph("Nothing is stored."))


def _privacy(counts: Tally, entries: Entries) -> Section:
    faces = Counter(entry.privacy.face for entry in entries.values())
    texts = Counter(entry.privacy.text for entry in entries.values())
    rows = [["Face", name, str(n)] for name, n in sorted(faces.items())]
    rows += [["Text in the pixels", name, str(n)] for name, n in sorted(texts.items())]
    blocked = {rule: n for (_, rule), n in counts.rules.items() if rule in ("burned_in_text", "burned_in", "face")}
    rows += [["Rejected", rule, str(n)] for rule, n in sorted(blocked.items())]
    passed = all(entry.privacy.passed for entry in entries.values())
    lead = "All scans went through the privacy gate." if passed else "Some scans did not go through the privacy gate."
    what = "Headers give the store numbers and words of closed lists only; people, studies and series are keyed hashes."
    return Section(
        "Privacy", table("Verdicts", ["Check", "Verdict", "Scans"], rows, text=(0, 1)) + paragraph(what), lead
    )


@config
class ReportArgs:
    """Write a page that shows what a store holds.

    Attributes:
        store: The store.
        shards: Shards packed from it.
        out: The page; None puts it into the store, as report/index.html.
    """

    store: tyro.conf.Positional[Path]
    shards: Path | None = None
    out: Path | None = None


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep report`; prints where the page is."""
    given = parse(ReportArgs, None, args, "python -m data_prep report")
    print(write_report(given.store, given.shards, given.out))
    return 0
