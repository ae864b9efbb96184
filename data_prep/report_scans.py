"""What the accepted scans of a store are: sizes, classes, intensities, a few of them in three planes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from voxscale.entry import Entry
from voxscale.index_table import Statistics
from voxscale.report import charts
from voxscale.report.page import Section, chart, grid, paragraph, picture
from voxscale.report.planes import three_planes
from voxscale.report.table import quantity, table
from voxscale.store import Store

SAMPLES = 6
"""Scans shown in three planes."""
BINS = 80
"""Bins of the histograms drawn."""

Entries = dict[str, Entry]


def composition(entries: Entries, store: Store) -> Section:
    """Modalities, sizes and classes."""
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
                _body(some),
                ", ".join(f"{name} {n}" for name, n in types),
                ", ".join(f"{name} {n}" for name, n in parts),
            ]
        )
    head = ["Modality", "Scans", "Subjects", "Slices", "Matrix", "Body", "Stored as", "Body part"]
    html = table("Scans by modality", head, rows, text=(0, 6, 7))
    html += _geometry(entries) + _classes(entries, store)
    return Section("Composition", html)


def _geometry(entries: Entries) -> str:
    """Spacing and field of view of every volume, as dots."""
    volumes = [entry for entry in entries.values() if not entry.planar and entry.spacing_known]
    if not volumes:
        return ""
    spacing = {
        f"{kind} {name}": [e.spacing[axis] for e in some][:: max(1, len(some) // 240)]
        for kind, some in by_kind(volumes)
        for axis, name in ((0, "slices"), (2, "in plane"))
    }
    extent = {
        f"{kind} {name}": [e.shape[axis] * e.spacing[axis] for e in some][:: max(1, len(some) // 240)]
        for kind, some in by_kind(volumes)
        for axis, name in ((0, "along z"), (2, "along x"))
    }
    parts = (
        chart(charts.strips(spacing, name="spacing", title="Voxel spacing", unit="mm", alt="Spacing of each scan")),
        chart(charts.strips(extent, name="extent", title="Field of view", unit="mm", alt="Extent of each scan")),
    )
    return grid(parts)


def _classes(entries: Entries, store: Store) -> str:
    """How often each class of labels and of whole images occurs."""
    html = ""
    labelled = Counter({int(v): n for e in entries.values() for v, n in (e.label or {}).items()})
    if labelled:
        cases = Counter(int(v) for e in entries.values() for v in e.label or {})
        lines = [[store.classes.get(v, str(v)), str(cases[v]), quantity(n)] for v, n in sorted(labelled.items())]
        html += table("Labels", ["Class", "Scans", "Voxels"], lines)
    classed = Counter(e.image_class for e in entries.values() if e.image_class is not None)
    if classed:
        lines = [[store.image_classes.get(v, str(v)), str(n)] for v, n in sorted(classed.items())]
        html += table("Classes of whole images", ["Class", "Images"], lines)
    return html


def _body(some: Sequence[Entry]) -> str:
    """Mean and standard deviation over the bodies of some scans."""
    pooled = Statistics()
    for entry in some:
        pooled.add(entry)
    return f"{pooled.mean:.0f} ± {pooled.std:.0f}"


def by_kind(some: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """Scans of each modality."""
    return [(kind, [e for e in some if e.modality == kind]) for kind in sorted({e.modality for e in some})]


def _range(values: Iterable[int]) -> str:
    known = list(values)
    return str(known[0]) if min(known) == max(known) else f"{min(known)} to {max(known)}"


def intensities(entries: Entries) -> Section:
    """Histograms of each modality, and scans far from the others."""
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


def samples(store: Store, entries: Entries) -> Section:
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
