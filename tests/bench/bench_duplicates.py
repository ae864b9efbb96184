"""Near-duplicates among real scans, and a search among a million: `make bench ONLY=duplicates`.

Needs the real scans beside the checkout. Scans are told of in two halves, even
and odd; settings were chosen on 63 of all 83 with other random draws, so these
are not figures of scans never seen. `ratio` is the recall of the odd half over
all changes together; goal 0.95, at a precision of 0.95 or more.
"""

import itertools
import resource
import time
from collections.abc import Callable

import numpy as np
from harness import ROOT, finish
from scipy import ndimage

from data_prep.descriptor import describe
from data_prep.similar import LEAST, agreement, build
from voxscale.io import load_file
from voxscale.seed import rng

DATA = ROOT.parent / "shared" / "data"
MILLION = 1_000_000
QUERIES = 2_000
PROPOSED = 24

Scan = tuple[np.ndarray, tuple[float, float, float]]


def crop(values: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """A box of a share of the volume, anywhere."""
    sizes = [max(4, round(n * share ** (1 / 3))) for n in values.shape]
    starts = [int(draw.integers(0, n - m + 1)) for n, m in zip(values.shape, sizes, strict=True)]
    return values[tuple(slice(a, a + m) for a, m in zip(starts, sizes, strict=True))]


def spread(values: np.ndarray) -> float:
    """Width of the values."""
    return float(np.percentile(values, 99) - np.percentile(values, 1))


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
    "noise of 5 %": lambda x, s, d: (x + d.normal(0, 0.05 * spread(x), x.shape), s),
    "mirrored": lambda x, s, d: (np.flip(x, int(d.integers(3))), s),
    "gamma 0.7-1.4": lambda x, s, d: (np.clip((x - x.min()) / spread(x), 0, 1) ** d.uniform(0.7, 1.4), s),
    "8 bits": lambda x, s, _: (eight_bits(x), s),
    "cropped, mirrored, another level": lambda x, s, d: (
        np.flip(crop(x, 0.8, d), 2) + d.normal(0, 0.02 * spread(x), 1)[0],
        s,
    ),
}


def main() -> None:
    """Measure and write."""
    paths = sorted([*DATA.glob("*_unlabelled/*"), *DATA.glob("labelled/*/images/*")])
    if not paths:
        raise SystemExit("error: the real scans must lie beside the checkout")
    volumes = [load_file(path).volume() for path in paths]
    scans = [(volume.values(), volume.spacing) for volume in volumes]
    began = time.perf_counter()
    known = [describe(*scan) for scan in scans]
    each = (time.perf_counter() - began) / len(scans)
    halves = {}
    for name, half in (("even scans", range(0, len(scans), 2)), ("odd scans", range(1, len(scans), 2))):
        found, pairs, recall = 0, 0, {}
        for change, apply in CHANGES.items():
            hits = 0
            for number in half:
                values, spacing = apply(*scans[number], rng(0, "bench", change, number))
                hits += agreement(known[number], describe(np.ascontiguousarray(values, np.float32), spacing)) >= LEAST
            recall[change] = round(hits / len(half), 4)
            found, pairs = found + hits, pairs + len(half)
        others = list(itertools.combinations(half, 2))
        wrong = [(a, b) for a, b in others if agreement(known[a], known[b]) >= LEAST]
        halves[name] = {
            "scans": len(half),
            "pairs": pairs,
            "recall": recall,
            "recall_all": round(found / pairs, 4),
            "different_pairs": len(others),
            "false_pairs": len(wrong),
            "precision": round(found / max(found + len(wrong), 1), 4),
        }
    measured = halves["odd scans"]
    finish(
        "duplicates",
        measured["recall_all"],
        0.95,
        measured["recall_all"] >= 0.95 and measured["precision"] >= 0.95,
        least=LEAST,
        describe_s=round(each, 4),
        halves=halves,
        million=_million([one.overall for one in known]),
    )


def _million(real: list[np.ndarray]) -> dict[str, float]:
    """Build and ask an index of a million vectors spread like the real ones."""
    draw = rng(0, "million")
    middle, spreads = np.mean(real, axis=0), np.cov(np.stack(real).T) + np.eye(len(real[0]))
    vectors = draw.multivariate_normal(middle, spreads, size=MILLION, method="cholesky").astype(np.float32)
    vectors = np.clip(np.rint(vectors), -127, 127)
    began = time.perf_counter()
    index = build(vectors)
    built = time.perf_counter() - began
    asked = draw.integers(0, MILLION, QUERIES)
    near = np.clip(vectors[asked] + draw.normal(0, 2, (QUERIES, vectors.shape[1])), -127, 127).astype(np.int8)
    began = time.perf_counter()
    found = index.search(near, PROPOSED).keys
    took = time.perf_counter() - began
    return {
        "vectors": MILLION,
        "build_s": round(built, 1),
        "search_all_s": round(took / QUERIES * MILLION, 1),
        "proposed_recall": round(float((found == asked[:, None]).any(axis=1).mean()), 4),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


if __name__ == "__main__":
    main()
