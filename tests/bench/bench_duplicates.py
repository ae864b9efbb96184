"""Near-duplicates among real scans, and a search among a million: `make bench ONLY=duplicates`.

Needs the real scans beside the checkout. `seen` are those on which the settings
were chosen (with other random draws), `unseen` those that were not looked at
then. `ratio` is the recall over all changes of the unseen ones; goal 0.95, at a
precision of 0.95 or more. The search among a million is run whole: descriptors
drawn from the real ones, with planted copies that kept 90, 70 or 50 % of their
blobs.
"""

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from harness import ROOT, finish
from scipy import ndimage

from data_prep.descriptor import POINTS, Descriptor, describe
from data_prep.similar import LEAST, agreement, find_pairs, make_table
from voxscale.errors import DataError
from voxscale.io import load_file
from voxscale.io.dicom import load_series
from voxscale.seed import rng

DATA = ROOT.parent / "shared" / "data"
MILLION = 1_000_000
COPIES = 1_000
"""Planted copies of each kind."""
SEEN = 16
"""Hippocampus scans, of 36, on which the settings were chosen, with all other NIfTI scans."""

Scan = tuple[np.ndarray, tuple[float, float, float]]


def crop(values: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """A box of a share of the volume, anywhere."""
    sizes = [max(4, round(n * share ** (1 / 3))) for n in values.shape]
    starts = [int(draw.integers(0, n - m + 1)) for n, m in zip(values.shape, sizes, strict=True)]
    return values[tuple(slice(a, a + m) for a, m in zip(starts, sizes, strict=True))]


def spread(values: np.ndarray) -> float:
    """Width of the values."""
    return float(np.percentile(values, 99) - np.percentile(values, 1))


def noisy(values: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """With noise of a share of the width of the values."""
    return values + draw.normal(0, share * spread(values), values.shape)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Windowed and rounded to bytes."""
    low, high = np.percentile(values, (1, 99))
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1))


def resampled(values: np.ndarray, spacing: tuple[float, ...], draw: np.random.Generator) -> Scan:
    """On an even grid of another spacing."""
    mm = float(draw.uniform(1.0, 2.5))
    return ndimage.zoom(values, [a / mm for a in spacing], order=1), (mm, mm, mm)


CHANGES: dict[str, Callable[[np.ndarray, tuple[float, float, float], np.random.Generator], Scan]] = {
    "resampled to 1-2.5 mm": resampled,
    "cropped to 80 %": lambda x, s, d: (crop(x, 0.8, d), s),
    "cropped to 60 %": lambda x, s, d: (crop(x, 0.6, d), s),
    "cropped to 50 %": lambda x, s, d: (crop(x, 0.5, d), s),
    "noise of 5 %": lambda x, s, d: (noisy(x, 0.05, d), s),
    "mirrored": lambda x, s, d: (np.flip(x, int(d.integers(3))), s),
    "gamma 0.7-1.4": lambda x, s, d: (np.clip((x - x.min()) / spread(x), 0, 1) ** d.uniform(0.7, 1.4), s),
    "8 bits": lambda x, s, _: (eight_bits(x), s),
    "cropped to 80 %, mirrored, noise of 2 %": lambda x, s, d: (noisy(np.flip(crop(x, 0.8, d), 2), 0.02, d), s),
}


def main() -> None:
    """Measure and write."""
    seen, unseen = _scans()
    began = time.perf_counter()
    known = {name: [describe(*scan) for scan in some] for name, some in (("seen", seen), ("unseen", unseen))}
    each = (time.perf_counter() - began) / (len(seen) + len(unseen))
    groups = {
        "unseen": _measure(unseen, known["unseen"], known["seen"]),
        "seen": _measure(seen, known["seen"], known["unseen"]),
    }
    measured = groups["unseen"]
    finish(
        "duplicates",
        measured["recall_all"],
        0.95,
        measured["recall_all"] >= 0.95 and measured["precision"] >= 0.95,
        least=LEAST,
        describe_s=round(each, 4),
        groups=groups,
        million=_million([*known["seen"], *known["unseen"]]),
    )


def _scans() -> tuple[list[Scan], list[Scan]]:
    """Real scans on which the settings were chosen, and others."""
    tasks = sorted(DATA.glob("labelled/*/images/*"))
    small = [path for path in tasks if "hippocampus" in path.parts[-3]]
    seen = [*sorted(DATA.glob("*_unlabelled/*")), *(path for path in tasks if path not in small), *small[:SEEN]]
    if not seen:
        raise SystemExit("error: the real scans must lie beside the checkout")
    volumes = [load_file(path).volume() for path in seen]
    others = [load_file(path).volume() for path in small[SEEN:]]
    for name in ("*/image", "ct_jpeg2000_totalseg", "mr_m*"):
        for folder in sorted((DATA / "dicom").glob(name)):
            try:
                others.append(load_series(sorted(folder.glob("*"))).volume())
            except DataError:
                continue  # not a folder of one series
    return [(v.values(), v.spacing) for v in volumes], [(v.values(), v.spacing) for v in others]


def _measure(scans: list[Scan], known: list[Descriptor], rest: list[Descriptor]) -> dict[str, object]:
    """Recall per change, and how often different scans are called one: among these, and of these with the rest."""
    recall, found = {}, 0
    for change, apply in CHANGES.items():
        hits = 0
        for number, scan in enumerate(scans):
            values, spacing = apply(*scan, rng(0, "bench", change, number))
            copy = describe(np.ascontiguousarray(values, np.float32), spacing)
            hits += agreement(known[number], copy) >= LEAST
        recall[change] = round(hits / len(scans), 4)
        found += hits
    others = [*itertools.combinations(known, 2), *itertools.product(known, rest)]
    wrong = sum(agreement(a, b) >= LEAST for a, b in others)
    return {
        "scans": len(scans),
        "pairs": len(scans) * len(CHANGES),
        "recall": recall,
        "recall_all": round(found / (len(scans) * len(CHANGES)), 4),
        "different_pairs": len(others),
        "false_pairs": wrong,
        "precision": round(found / max(found + wrong, 1), 4),
    }


def _million(real: list[Descriptor]) -> dict[str, object]:
    """Search a million descriptors for copies of one another, planted ones among them."""
    kept = {share: {} for share in (0.9, 0.7, 0.5)}
    draw = rng(0, "million")
    first = [int(n) for n in draw.permutation(MILLION // 2)[: len(kept) * COPIES]]
    copied = dict(zip(range(MILLION - len(first), MILLION), first, strict=True))
    originals: dict[int, Descriptor] = {}
    wanted = set(first)

    def each() -> Iterator[Descriptor]:
        for number in range(MILLION):
            one = rng(0, "million", number)
            if number in copied:
                share = tuple(kept)[(number - MILLION) % len(kept)]
                kept[share][copied[number], number] = 0
                yield _copy(originals[copied[number]], real, share, one)
            else:
                made = _other(real, one)
                if number in wanted:
                    originals[number] = made
                yield made

    with tempfile.TemporaryDirectory() as folder, _Memory() as memory:
        table = make_table(each(), MILLION, Path(folder))
        began = time.perf_counter()
        pairs = find_pairs(table)
        took = time.perf_counter() - began
    found = {(pair.a, pair.b) for pair in pairs}
    return {
        "scans": MILLION,
        "search_s": round(took, 1),
        "private_gb": round(memory.peak / 1e9, 2),
        "planted": {
            str(share): round(float(np.mean([p in found for p in places])), 4) for share, places in kept.items()
        },
        "not_planted": len(found - {place for places in kept.values() for place in places}),
    }


def _other(real: list[Descriptor], draw: np.random.Generator) -> Descriptor:
    """A scan that never was: blobs of several real ones, at other places."""
    looks = np.concatenate([real[int(n)].looks for n in draw.integers(len(real), size=4)])
    chosen = looks[draw.permutation(len(looks))[:POINTS]].astype(np.float32)
    chosen = np.clip(np.rint(chosen + draw.normal(0, 12, chosen.shape)), -127, 127)
    return Descriptor(draw.uniform(0, 300, (len(chosen), 3)).astype(np.float16), chosen.astype(np.int8))


def _copy(one: Descriptor, real: list[Descriptor], share: float, draw: np.random.Generator) -> Descriptor:
    """The same scan cropped and noisy: a share of its blobs, a little off, and new ones in the place of the rest."""
    other = _other(real, draw)
    keep = draw.permutation(len(one.looks))[: round(share * len(one.looks))]
    looks = one.looks[keep] + draw.normal(0, 4, (len(keep), one.looks.shape[1]))
    points = one.points[keep] * [1, 1, -1] + draw.normal(0, 1, (len(keep), 3)) + draw.uniform(0, 50, 3)
    new = len(one.looks) - len(keep)
    return Descriptor(
        np.concatenate([points, other.points[:new]]).astype(np.float16),
        np.concatenate([np.clip(np.rint(looks), -127, 127), other.looks[:new]]).astype(np.int8),
    )


class _Memory:
    """Largest private memory of this process while it is watched; pages of files on disk are not counted."""

    def __init__(self) -> None:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.peak = max(self.peak, int(lines["RssAnon"].split()[0]) * 1024)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


if __name__ == "__main__":
    main()
