"""What a store holds, as one static page: `python -m data_prep report STORE`."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from data_prep.ledger import THUMBNAILS
from data_prep.report_ledger import ADVICE, MOST_ROWS, Tally, tally
from voxscale.config import config, parse
from voxscale.entry import Entry
from voxscale.files import write_text
from voxscale.report import charts
from voxscale.report.page import (
    Section,
    chart,
    folded,
    grid,
    heading,
    paragraph,
    picture,
    render_page,
    thumbnails,
    tiles,
)
from voxscale.report.planes import three_planes
from voxscale.report.table import quantity, table
from voxscale.shards import open_manifest
from voxscale.store import Store, open_store

MOST_SHOWN = 24
"""Thumbnails of one rule, pairs of duplicates, dots of a chart times ten."""
MOST_ENTRIES = 20_000
"""Scans that tables and charts tell of; of more, every nth."""
SAMPLES = 6
"""Scans shown in three planes."""
BINS = 80

Entries = dict[str, Entry]


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
        _composition(entries, store),
        _ledger(counts, path),
        _duplicates(path),
        _intensities(entries),
        _samples(store, entries),
        _disk(entries, shards),
        _privacy(counts, entries),
    ]
    page = out or path / "report" / "index.html"
    footer = "Made by VoxScale from the store alone; it names no file and no person. Not for clinical use."
    write_text(page, render_page("VoxScale: what the store holds", sections, footer=footer))
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


def _composition(entries: Entries, store: Store) -> Section:
    if not entries:
        return Section("Composition", paragraph("The store holds no scan."))
    kinds = sorted({entry.modality for entry in entries.values()})
    rows: list[list[str]] = []
    for kind in kinds:
        some = [entry for entry in entries.values() if entry.modality == kind]
        parts = Counter(entry.technique.get("body_part") or "not stated" for entry in some).most_common(3)
        types = Counter(entry.dtype for entry in some).most_common(2)
        rows.append(
            [
                kind,
                str(len(some)),
                str(len({entry.subject for entry in some})),
                _range(entry.shape[0] for entry in some),
                _range(max(entry.shape[1:]) for entry in some),
                ", ".join(f"{name} {n}" for name, n in types),
                ", ".join(f"{name} {n}" for name, n in parts),
            ]
        )
    head = ["Modality", "Scans", "Subjects", "Slices", "Matrix", "Stored as", "Body part"]
    html = table("Scans by modality", head, rows, text=(0, 5, 6))
    volumes = [entry for entry in entries.values() if not entry.planar and entry.spacing_known]
    if volumes:
        spacing = {
            f"{kind} {name}": [e.spacing[axis] for e in some][:: max(1, len(some) // 240)]
            for kind, some in _by_kind(volumes)
            for axis, name in ((0, "slices"), (2, "in plane"))
        }
        extent = {
            f"{kind} {name}": [e.shape[axis] * e.spacing[axis] for e in some][:: max(1, len(some) // 240)]
            for kind, some in _by_kind(volumes)
            for axis, name in ((0, "along z"), (2, "along x"))
        }
        parts = (
            chart(charts.strips(spacing, name="spacing", title="Voxel spacing", unit="mm", alt="Spacing of each scan")),
            chart(charts.strips(extent, name="extent", title="Field of view", unit="mm", alt="Extent of each scan")),
        )
        html += grid(parts)
    labelled = Counter({int(v): n for e in entries.values() for v, n in (e.label or {}).items()})
    if labelled:
        cases = Counter(int(v) for e in entries.values() for v in e.label or {})
        lines = [[store.classes.get(v, str(v)), str(cases[v]), quantity(n)] for v, n in sorted(labelled.items())]
        html += table("Labels", ["Class", "Scans", "Voxels"], lines)
    classed = Counter(e.image_class for e in entries.values() if e.image_class is not None)
    if classed:
        lines = [[store.image_classes.get(v, str(v)), str(n)] for v, n in sorted(classed.items())]
        html += table("Classes of whole images", ["Class", "Images"], lines)
    return Section("Composition", html)


def _by_kind(some: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    return [(kind, [e for e in some if e.modality == kind]) for kind in sorted({e.modality for e in some})]


def _range(values: Iterable[int]) -> str:
    known = list(values)
    return str(known[0]) if min(known) == max(known) else f"{min(known)} to {max(known)}"


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
    path = store / THUMBNAILS / f"{key}.png"
    return path.read_bytes() if path.is_file() else None


def _duplicates(store: Path) -> Section:
    html, leads = "", []
    for name, what in (("duplicates.json", "within the store"), ("audit.json", "shared with a task")):
        path = store / name
        if not path.is_file():
            continue
        pairs = json.loads(path.read_text())["pairs"]
        leads.append(f"{len(pairs)} pairs {what}")
        if not pairs:
            continue
        html += heading(f"Pairs {what}")
        cells: list[str] = []
        for pair in pairs[:MOST_SHOWN]:
            both = [(png, f"{key}") for key in (pair["a"], pair["b"]) if (png := _thumbnail(store, key))]
            told = paragraph(f"{pair['score']} places agree", "note")
            cells.append(f"<div>{thumbnails(both)}{told}</div>")
        html += '<div class="pair">' + "\n".join(cells) + "</div>"
        if len(pairs) > MOST_SHOWN:
            html += paragraph(f"{len(pairs) - MOST_SHOWN} more pairs stand in {name}.", "note")
    lead = "; ".join(leads) + "." if leads else "Near-duplicates were not looked for."
    return Section("Near-duplicates", html or paragraph("No pictures to show."), lead)


def _intensities(entries: Entries) -> Section:
    parts: list[str] = []
    for kind in sorted({entry.modality for entry in entries.values()}):
        some = [entry for entry in entries.values() if entry.modality == kind and entry.histogram]
        if not some:
            continue
        ends = (-1100.0, 1600.0) if kind == "CT" else (0.0, 1.0)
        edges = np.linspace(*ends, BINS + 1)
        shares = np.stack([_rebin(entry, edges, kind == "CT") for entry in some[:: max(1, len(some) // 2000)]])
        low, middle, high = np.percentile(shares, (5, 50, 95), axis=0).tolist()
        unit = "HU" if kind == "CT" else "between the outer percentiles (0 to 1)"
        svg = charts.histogram(
            edges.tolist(), low, middle, high, name=f"values-{kind}", title=f"{kind}: {len(some)} scans", unit=unit,
            alt=f"Histogram of {kind} values: median of the scans and the range of 90 % of them",
        )  # fmt: skip
        parts.append(chart(svg, "Line: median of the scans. Band: 90 % of them."))
    odd = _outliers(entries)
    html = grid(parts) if parts else paragraph("No histograms are known.")
    return Section("Intensities", html + odd)


def _rebin(entry: Entry, edges: Any, units: bool) -> Any:
    """Percent of a scan's voxels in common bins."""
    ends = [float(value) for value in entry.percentiles.values()]
    low, high = (min(ends), max(ends)) if units else (0.0, 1.0)
    own = np.linspace(low, high, len(entry.histogram) + 1)
    total = np.concatenate([[0.0], np.cumsum(entry.histogram)])
    return 100 * np.diff(np.interp(edges, own, total))


def _outliers(entries: Entries) -> str:
    """Scans whose body is far from that of the others of their modality."""
    rows: list[list[str]] = []
    for kind in sorted({entry.modality for entry in entries.values()}):
        some = {key: e for key, e in entries.items() if e.modality == kind}
        if len(some) < 8:
            continue
        means = np.array([e.body_mean for e in some.values()])
        middle = float(np.median(means))
        spread = float(np.median(np.abs(means - middle))) * 1.4826 or 1.0
        far = sorted(
            ((abs(e.body_mean - middle) / spread, key, e) for key, e in some.items()), reverse=True, key=lambda t: t[0]
        )
        rows += [[key, kind, f"{e.body_mean:.0f}", f"{z:.1f}"] for z, key, e in far[:5] if z > 5]
    if not rows:
        return paragraph("No scan's body is far from the others of its modality.", "note")
    return table("Scans far from the others", ["Id", "Modality", "Mean of the body", "Robust deviations"], rows)


def _samples(store: Store, entries: Entries) -> Section:
    """A few scans in three planes, spread over modalities."""
    chosen: list[str] = []
    volumes = {key: entry for key, entry in entries.items() if not entry.planar}
    kinds = sorted({entry.modality for entry in volumes.values()})
    for kind in kinds:
        keys = sorted(key for key, entry in volumes.items() if entry.modality == kind)
        chosen += keys[:: max(1, len(keys) // max(1, SAMPLES // len(kinds)))][: max(1, SAMPLES // len(kinds))]
    parts: list[str] = []
    for key in chosen:
        entry = entries[key]
        values = store.volume(key).values()
        window = (-1000.0, 1000.0) if entry.modality == "CT" else None
        point = tuple((low + high) // 2 for low, high in entry.foreground_box)
        png = three_planes(values, entry.spacing, window=window, point=(point[0], point[1], point[2]))
        size = " x ".join(str(n) for n in entry.shape)
        spacing = " x ".join(f"{mm:.3g}" for mm in entry.spacing)
        caption = f"{key}: {entry.modality}, {size} voxels of {spacing} mm"
        parts.append(picture(png, f"Scan {key} in three planes", caption))
    return Section("Samples", grid(parts) if parts else paragraph("There is no volume to show."))


def _disk(entries: Entries, shards: Path | None) -> Section:
    rows: list[list[str]] = []
    for kind, some in _by_kind(list(entries.values())):
        raw = sum(np.prod(e.shape, dtype=float) * e.channels * np.dtype(e.dtype).itemsize for e in some)
        kept = sum(e.bytes for e in some)
        rows.append([kind, _bytes(raw), _bytes(kept), f"{raw / max(kept, 1):.2f}"])
    html = table("Disk use", ["Modality", "Voxels", "Stored", "Ratio"], rows) if rows else ""
    if shards is not None:
        manifest, indexes = open_manifest(shards)
        lines = [
            [index.name, str(len(index.samples)), _bytes(index.bytes), str(index.skipped_air)] for index in indexes
        ]
        html += table("Shards", ["Tar", "Bricks", "Size", "Left out as air"], lines[:100])
        subjects = Counter(sample.subject for index in indexes for sample in index.samples)
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
