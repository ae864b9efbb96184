"""How well 200,000 scans are mixed, beside a uniform shuffle: `make bench ONLY=shuffle`.

Scans of likely sizes are planned into tars and bricks by the functions that pack
them; no voxel is written. `ratio` is what `ShardStream` at its defaults mixes in
a global batch of 256, different people over those of an ideal shuffle of the
epoch; goal 0.8. `StoreStream` draws from runs of 1024 scans. `graphs` tells, of
16 samples in a row, which share of their pairs is of one person, tar or kind.
"""

import dataclasses
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from bench_index_1m import scan
from harness import ROOT, finish

sys.path.insert(0, str(ROOT / "tests"))

from many_tars import Bricks, write_shards  # the line above makes it importable

from data_prep.bricks import PackConfig, brick_boxes, occupied
from data_prep.groups import Candidate, plan_groups
from voxscale.contract import InputContract
from voxscale.entry import Entry, group_of
from voxscale.index_write import write_index
from voxscale.store_root import create_store
from voxscale.stream import (
    AlikeConfig,
    Quality,
    ShardStream,
    ShardStreamConfig,
    StoreStream,
    StoreStreamConfig,
    shuffle_quality,
)
from voxscale.stream.epoch import Order
from voxscale.stream.quality import WINDOW, Apart, Mixed

SCANS, PEOPLE, POOL = 200_000, 120_000, 2048
PATCH, CONTRACT, PACK = (128, 128, 128), InputContract(), PackConfig()
PACKED = 2.2
"""Ratio of 16-bit voxels to their bytes in a store."""
BATCHES = (16, 256, 1024)
GRAPH = 16
SETTINGS = ((16, 1), (64, 1), (256, 1), (256, 4))
"""Tars that are mixed, and samples in a row from a brick."""


class Plan:
    """200,000 scans of 120,000 people, in tars as `data_prep pack` plans them."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.pool = [scan(draw) for _ in range(POOL)]
        boxes = [brick_boxes(entry, PATCH, CONTRACT, PACK) for entry in self.pool]
        self.bricks = [
            len(occupied(entry, each, PACK.foreground)) for entry, each in zip(self.pool, boxes, strict=True)
        ]
        sizes = [2 / PACKED * sum(math.prod(b - a for a, b in box) for box in each) for each in boxes]
        self.kind = draw.integers(POOL, size=SCANS)
        self.subject = draw.integers(PEOPLE, size=SCANS)
        groups = plan_groups(
            (),
            (Candidate(f"{n:016x}", "", sizes[k]) for n, k in enumerate(self.kind.tolist())),
            PACK.shard_mb * 1e6,
            PACK.holdout,
        )
        self.tars = [[int(key, 16) for key in group.volumes] for group in groups]
        self.groups = [dict(sorted(Counter(group for _, _, group in self.of(n)).items())) for n in range(len(groups))]

    def entry(self, number: int) -> Entry:
        """One scan."""
        return dataclasses.replace(self.pool[self.kind[number]], subject=f"{self.subject[number]:016x}")

    def of(self, tar: int) -> Bricks:
        """Bricks of a tar."""
        found: list[tuple[str, str, str]] = []
        for number in self.tars[tar]:
            kind = self.kind[number]
            entry = self.pool[kind]
            group = group_of(entry.dataset, entry.modality, entry.technique.get("body_part"))
            found += [(f"{number:016x}", f"{self.subject[number]:016x}", group)] * self.bricks[kind]
        return found


def rounded(values: Apart | Mixed) -> dict[str, float]:
    """To one decimal."""
    return {name: round(value, 1) for name, value in dataclasses.asdict(values).items()}


def told(found: Quality) -> dict[str, Any]:
    """Figures for the result file."""
    figures = {"samples": found.samples, "epoch": found.epoch}
    pairs = {"apart": found.apart, "mixed": found.mixed}
    return figures | {
        name: {kind: {"found": rounded(real), "ideal": rounded(ideal)} for kind, (real, ideal) in each.items()}
        for name, each in pairs.items()
    }


def pairs(stream: ShardStream) -> dict[str, float]:
    """Share of the pairs of a graph that have something in common, over the first blocks of an epoch."""
    keys = stream.neighbours(0, WINDOW) | {"kind": stream.order.rows(0, WINDOW)[:, 1]}
    out: dict[str, float] = {}
    for name, key in keys.items():
        graphs = np.sort(key[: len(key) // GRAPH * GRAPH].reshape(-1, GRAPH), axis=1)
        equal = graphs[:, :, None] == graphs[:, None]
        out[name] = round(float((equal.sum(axis=(1, 2)) - GRAPH).mean() / (GRAPH * (GRAPH - 1))), 5)
    return out


def main() -> None:
    """Measure both sources at several settings."""
    plan = Plan()
    cells: dict[str, Any] = {}
    config = ShardStreamConfig()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        # Which tars come first is known from the counts alone; only their indexes are written.
        orders = [Order(plan.groups, config.repeats, mix, config.weights, 0) for mix, _ in SETTINGS]
        first = {unit for order in orders for unit in order.rows(0, WINDOW)[:, 0].tolist()}
        write_shards(root / "shards", plan.groups, plan.of, first)
        for mix, patches in SETTINGS:
            stream = ShardStream(root / "shards", dataclasses.replace(config, mix=mix, patches=patches), 0)
            for batch in BATCHES:
                cells[f"shards, mix {mix}, patches {patches}, batch {batch}"] = told(shuffle_quality(stream, batch))
        cases = {"even": AlikeConfig(), "alike": AlikeConfig(group=GRAPH)}
        graphs = {
            name: pairs(ShardStream(root / "shards", dataclasses.replace(config, alike=alike), 0))
            for name, alike in cases.items()
        }
        create_store(root / "store", {})
        write_index(root / "store", ((f"{n:016x}", plan.entry(n)) for n in range(SCANS)))
        scans = StoreStream(root / "store", PATCH, CONTRACT, StoreStreamConfig(), 0)
        began = time.perf_counter()
        for batch in BATCHES:
            cells[f"store, mix {StoreStreamConfig().mix}, batch {batch}"] = told(shuffle_quality(scans, batch))
        seconds = (time.perf_counter() - began) / len(BATCHES)
    usual = cells[f"shards, mix {config.mix}, patches {config.patches}, batch 256"]["mixed"]["subject"]
    ratio = usual["found"]["mean"] / usual["ideal"]["mean"]
    about = {"scans": SCANS, "people": PEOPLE, "tars": len(plan.tars)}
    about["bricks"] = sum(sum(counts.values()) for counts in plan.groups)
    finish("shuffle", ratio, 0.8, ratio >= 0.8, plan=about, store_seconds=round(seconds, 2), graphs=graphs, cells=cells)


if __name__ == "__main__":
    main()
