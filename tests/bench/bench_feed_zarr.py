"""Random 128^3 patches of one large CT, each read anew from disk into a float32 tensor: `make bench ONLY=feed_zarr`.

Ours against nnU-Net's blosc2 files, one thread each, warm page cache, boxes
drawn uniformly. Goal: at least 3 times as fast at no more than 1.15 times the
bytes, against the normalisation that keeps what we keep (`zscore`); the others
stand beside it. Every byte that we read is compared with its checksum; nnU-Net
checks none.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import nnunet_route
import numpy as np
import torch
from ct_volume import SHAPE, real_ct
from harness import alternate, finish, paired_ratio
from nnunet_route import PATCH

from voxscale.arrays import chunk_bytes
from voxscale.config import to_dict
from voxscale.contract import PERCENTILES
from voxscale.entry import Entry
from voxscale.files import append_line
from voxscale.ledger import LEDGER
from voxscale.scan_folder import write_volume
from voxscale.store import open_store
from voxscale.store_root import create_store
from voxscale.volume import Volume

GOAL, MOST_BYTES = 3.0, 1.15
ROUNDS = 60
KEY = "0" * 16


def entry_of(volume):
    """What the ledger would say of the scan."""
    return Entry(
        subject="s",
        modality="CT",
        modality_from="config",
        shape=volume.shape,
        spacing=volume.spacing,
        affine=volume.affine.tolist(),
        dtype="int16",
        slope=1.0,
        intercept=0.0,
        percentiles={str(p): 0.0 for p in PERCENTILES},
        foreground_box=tuple((0, n) for n in volume.shape),
        foreground=1.0,
        label=None,
    )


def store_of(voxels, path):
    """A store of one scan, and the bytes of its full-size array."""
    volume = Volume(voxels, np.diag([1.0, 0.7, 0.7, 1.0]), "CT")
    create_store(path, {})
    entry = write_volume(path, KEY, volume, None, entry_of(volume), {})
    row = {"id": KEY, "kind": "image", "status": "accepted", "entry": to_dict(entry)}
    append_line(path / LEDGER, json.loads(json.dumps(row)))
    return chunk_bytes(path / KEY / "0")


def compare(ours, theirs, starts):
    """CPU ratio, CPU and wall milliseconds of both."""
    places = [iter(starts * 2), iter(starts * 2)]
    times = alternate(lambda: ours(next(places[0])), lambda: theirs(next(places[1])), len(starts) - 1)
    wall = []
    for read in (ours, theirs):
        began = time.perf_counter()
        for start in starts:
            read(start)
        wall.append((time.perf_counter() - began) / len(starts))
    return {
        "ratio": round(1 / paired_ratio(*times), 3),
        "ours_ms": round(1e3 * statistics.median(times[0]), 3),
        "theirs_ms": round(1e3 * statistics.median(times[1]), 3),
        "ours_wall_ms": round(1e3 * wall[0], 3),
        "theirs_wall_ms": round(1e3 * wall[1], 3),
    }


def main() -> None:
    """Measure against nnU-Net's route, against whole numbers in its format, and against a copy in memory."""
    torch.set_num_threads(1)
    voxels = real_ct()
    generator = np.random.default_rng(1)
    starts = [tuple(int(generator.integers(n - 128 + 1)) for n in SHAPE) for _ in range(ROUNDS)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bytes_ours = store_of(voxels, root / "store")
        stores = {access: open_store(root / "store", access) for access in ("map", "range")}

        def ours(start, access="map"):
            box = [(a, a + n) for a, n in zip(start, PATCH, strict=True)]
            return torch.from_numpy(stores[access].read(KEY, box, as_float=True))

        cells = {}
        norms: tuple[nnunet_route.Norm, ...] = ("zscore", "ct", "none")
        for name in norms:
            (root / name).mkdir()
            bytes_theirs = nnunet_route.save(voxels, root / name, name)
            theirs = nnunet_route.reader(root / name)
            if name == "none":
                assert torch.equal(ours(starts[0]), theirs(starts[0])[0])
            cells[name] = compare(ours, theirs, starts) | {"bytes_ratio": round(bytes_ours / bytes_theirs, 3)}
        source = np.zeros(PATCH, np.float32)
        cells["memcpy"] = compare(ours, lambda _: torch.from_numpy(source.copy()), starts)
        cells["by_ranges"] = compare(lambda start: ours(start, "range"), ours, starts)
        box = ours(starts[1]).numpy().astype(np.int16)
        assert np.array_equal(box, voxels[tuple(slice(a, a + 128) for a in starts[1])])
    ratio, more = cells["zscore"]["ratio"], cells["zscore"]["bytes_ratio"]
    compression = round(voxels.nbytes / bytes_ours, 3)
    ok = ratio >= GOAL and more <= MOST_BYTES
    finish("feed_zarr", ratio, GOAL, ok, cells=cells, lz4_ratio=compression, threads=1, patch=PATCH)


if __name__ == "__main__":
    main()
