"""A view of twice and of four times a patch's side, from the level that it asks for, and pooled from the scan itself.

`make bench ONLY=wide`. One real CT (300 x 512 x 512) as a store and as shards with `--levels 3`, patch 96^3 at the
scan's spacing, no zoom. Both sides read the same places and end as a float32 image of a patch, by what part-whole reads
with: what is stored is read, pooled where two voxels and more fall on one, and resampled. CPU time in turn on one
thread, and bytes of the chunks that are decoded. `ratio` is the time pooled over that from the level at twice the side;
no goal was set, so 1 is taken: not slower.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_feed_zarr import store_of
from ct_volume import real_ct
from harness import alternate, finish, paired_ratio

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from pretrain.objectives.part_whole_views import Reader
from voxscale import chunks
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import collate
from voxscale.contract import InputContract
from voxscale.stream import Curriculum, ShardStream, ShardStreamConfig, StoreStream, StoreStreamConfig, WideCrops

PATCH, ROUNDS = (96, 96, 96), 12
CONTRACT = InputContract(spacing=(1.0, 0.7, 0.7))
STRIDES = ((2, 2, 2),) * 5
DECODED = [0]


def counted(inner: Callable[..., None]) -> Callable[..., None]:
    """The decoder, which counts the bytes of the chunks that it is given."""

    def decode(layout: Any, blob: Any, rows: Any, *more: Any) -> None:
        DECODED[0] += int(rows["bytes"].sum())
        inner(layout, blob, rows, *more)

    return decode


def still(times: float) -> SpatialConfig:
    """Nothing but a wider crop."""
    return SpatialConfig(zoom=(times, times), flip=(0.0, 0.0, 0.0))


def image(stream: ShardStream | StoreStream, index: int) -> torch.Tensor:
    """What part-whole sees of a sample's only crop."""
    ((patch,), bad) = stream.sample(index)
    assert not bad
    return Reader(collate([patch])).read(np.eye(3, 4)[None], PATCH)[0]


def measure(level: ShardStream | StoreStream, pooled: StoreStream) -> dict[str, Any]:
    """Times and bytes of both, and how far their values are apart where they read the same place."""
    turns = [iter(range(ROUNDS + 1)), iter(range(ROUNDS + 1))]
    times = alternate(lambda: image(level, next(turns[0])), lambda: image(pooled, next(turns[1])), ROUNDS)
    read: list[float] = []
    for stream in (level, pooled):
        DECODED[0] = 0
        for index in range(ROUNDS):
            image(stream, index)
        read.append(DECODED[0] / ROUNDS)
    return {
        "ratio": round(1 / paired_ratio(*times), 3),
        "level_ms": round(1e3 * statistics.median(times[0]), 2),
        "pooled_ms": round(1e3 * statistics.median(times[1]), 2),
        "level_mb": round(read[0] / 1e6, 3),
        "pooled_mb": round(read[1] / 1e6, 3),
    }


def main() -> None:
    """Measure from the store and from shards."""
    torch.set_num_threads(1)
    chunks.__dict__["_decode"] = counted(chunks.__dict__["_decode"])
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder), dict[str, Any]()
        store_of(real_ct(), root / "store")
        sizes = {}
        for levels in (1, 3):
            pack(root / "store", root / f"{levels}", CONTRACT, PATCH, STRIDES, PackConfig(levels=levels))
            sizes[levels] = sum(file.stat().st_size for file in (root / f"{levels}").glob("*.tar"))
        for times, which in ((2, 1), (4, 0)):
            crops = WideCrops(0, 2, Curriculum(tuple(float(n == which) for n in range(3)), 0.0), 1, 1)
            plain = StoreStreamConfig(views=1, spatial=still(1.0))
            pooled = StoreStreamConfig(views=1, spatial=still(times))
            zoomed = StoreStream(root / "store", PATCH, CONTRACT, pooled, 0)
            level = StoreStream(root / "store", PATCH, CONTRACT, plain, 0, crops)
            bricks = ShardStream(root / "3", ShardStreamConfig(views=1, spatial=still(1.0)), 0, crops)
            found[f"store_{times}x"] = measure(level, zoomed)
            apart = torch.stack([(image(level, n) - image(zoomed, n)).abs().mean() for n in range(3)])
            found[f"store_{times}x"]["mean_difference"] = round(float(apart.max()), 5)
            found[f"shards_{times}x"] = measure(bricks, zoomed)
    ratio = found["store_2x"]["ratio"]
    found["shards_mb"] = {name: round(size / 1e6, 2) for name, size in sizes.items()}
    finish("wide", ratio, 1.0, ratio >= 1, patch=PATCH, **found)


if __name__ == "__main__":
    main()
