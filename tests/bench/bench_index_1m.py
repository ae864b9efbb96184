"""A store of a million scans: open its index and draw 10,000 samples in a fresh process: `make bench ONLY=index_1m`.

The rows are synthetic and written by `write_index`; no scan is written. What is
timed: `StoreStream` is made, and `volume` names the scan of 10,000 samples in
training order. `ratio` is the worse of seconds to 1 s and of peak memory, what
imports take left out, to 300 MB, at a million rows; goal 1. With imports is
stated too, and the entry of a scan read from its own folder is not part of it.
"""

import base64
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import ROOT, finish

from voxscale.contract import PERCENTILES
from voxscale.entry import Entry, Occupancy, Privacy
from voxscale.index import INDEX
from voxscale.index_write import publish_index, write_index
from voxscale.store_root import create_store

COUNTS = (10_000, 100_000, 1_000_000)
POOL = 2048
"""Different scans; a row repeats one with its own id and subject."""
TIMES = 10
"""The largest index is measured once more with this many times its parts, which are linked: their ids repeat."""
ROUNDS = 3
CHILD = """
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
from voxscale.contract import InputContract
from voxscale.stream import StoreStream, StoreStreamConfig
imported, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
stream = StoreStream(Path(sys.argv[1]), (96, 96, 96), InputContract(), StoreStreamConfig(), 0)
start = time.perf_counter() - began
drawn = [stream.volume(index) for index in range(10_000)]
draw = time.perf_counter() - began - start
whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"imports_s": imported, "start_s": start, "draw_s": draw, "imports_mb": peak * 1.024e-3,
                  "peak_mb": whole * 1.024e-3, "different": len(set(drawn)), "epoch": len(stream)}))
"""


def scan(draw: np.random.Generator) -> Entry:
    """A likely scan: sizes, spacing, technique, histogram and a body in air."""
    modality, part = ("CT", "MR")[int(draw.integers(2))], str(draw.choice(["chest", "abdomen", "head", "knee"]))
    shape = (int(draw.integers(24, 600)), *[int(draw.choice([256, 320, 512]))] * 2)
    spacing = (float(draw.uniform(0.6, 6)), *[round(float(draw.uniform(0.5, 1)), 6)] * 2)
    cell = tuple(max(32, -(-n // 16)) for n in shape)
    grid = tuple(-(-n // c) for n, c in zip(shape, cell, strict=True))
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in grid], indexing="ij"), -1)
    shares = (255 * np.clip(1.5 - (np.abs(place) ** 3).sum(-1) * draw.uniform(1, 2, grid), 0, 1)).astype(np.uint8)
    return Entry(
        subject="",
        dataset=str(draw.choice(["one", "two", "three"])),
        study=f"{draw.integers(2**63):016x}",
        series=f"{draw.integers(2**63):016x}",
        modality=modality,
        modality_from="header",
        shape=shape,
        spacing=spacing,
        affine=np.diag([*spacing, 1.0]).tolist(),
        dtype="int16",
        slope=1.0,
        intercept=0.0,
        percentiles={str(p): float(v) for p, v in zip(PERCENTILES, np.sort(draw.normal(0, 500, 99)), strict=False)},
        histogram=tuple(np.round(draw.dirichlet(np.ones(64)), 6).tolist()),
        body_mean=float(draw.normal(0, 100)),
        body_std=float(draw.uniform(50, 200)),
        foreground_box=tuple((n // 10, n - n // 10) for n in shape),
        foreground=float(draw.uniform(0.2, 0.8)),
        occupancy=Occupancy(cell, grid, base64.b64encode(zlib.compress(shares.tobytes(), 9)).decode()),
        label=None,
        technique={"body_part": part, "manufacturer": "siemens", "image_type": ["ORIGINAL", "PRIMARY"], "kvp": 120.0},
        privacy=Privacy("none", "none", True, 0),
        bytes=int(draw.integers(10**6, 10**8)),
    )


def rows(count: int) -> Iterator[tuple[str, Entry]]:
    """Rows with random ids."""
    draw = np.random.default_rng(0)
    pool = [scan(draw) for _ in range(POOL)]
    for _ in range(count):
        key, subject = draw.integers(0, 2**64, 2, dtype=np.uint64).tolist()
        yield f"{key:016x}", dataclasses.replace(pool[int(draw.integers(POOL))], subject=f"{subject:016x}")


def measure(store: Path) -> dict[str, float]:
    """The median of fresh processes."""
    command = [sys.executable, "-c", CHILD, str(store)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
        for _ in range(ROUNDS)
    ]
    middle = sorted(runs, key=lambda run: run["start_s"] + run["draw_s"])[ROUNDS // 2]
    told = {name: round(value, 4) for name, value in middle.items()}
    told |= {"seconds": round(middle["start_s"] + middle["draw_s"], 3)}
    return told | {"own_mb": round(middle["peak_mb"] - middle["imports_mb"], 1)}


def repeat_parts(store: Path) -> None:
    """Make the index `TIMES` as long: its parts under more names."""
    lines = json.loads((store / INDEX).read_text())["parts"]
    every = list(lines)
    for number in range(len(lines), TIMES * len(lines)):
        line = lines[number % len(lines)]
        every.append(line | {"name": f"part-{number:05d}.parquet"})
        os.link((store / INDEX).with_name(line["name"]), (store / INDEX).with_name(every[-1]["name"]))
    publish_index(store, every)


def main() -> None:
    """Write three indexes, then measure each, and the largest with its parts repeated, in fresh processes."""
    cells = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            create_store(store, {})
            began = time.perf_counter()
            write_index(store, rows(count))
            wrote = time.perf_counter() - began
            size = sum(file.stat().st_size for file in (store / "index").iterdir())
            told = {"write_s": round(wrote, 1), "bytes_a_row": round(size / count, 1)}
            cells[f"{count}"] = measure(store) | told
            if count == COUNTS[-1]:
                repeat_parts(store)
                cells[f"{TIMES * count} (parts repeated)"] = measure(store)
    worst = cells[f"{COUNTS[-1]}"]
    ratio = max(worst["seconds"] / 1.0, worst["own_mb"] / 300)
    finish("index_1m", ratio, 1.0, ratio <= 1, cells=cells, samples=10_000, rounds=ROUNDS)


if __name__ == "__main__":
    main()
