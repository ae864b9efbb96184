"""128^3 patches from packed shards, four from each brick: `make bench ONLY=feed_shards`.

Ours is `ShardStream` in its own order, from a sample's number to float32
tensors of the boxes that it cuts, without zoom (`as_float`: numbers become
floats as they are decoded; `stored` converts crops of stored numbers instead,
which training leaves to the device). The peer reads as many boxes of the same
scan from nnU-Net's blosc2 file. One thread each, warm page cache; whatever is
decoded for one brick is paid for in these times. Each patch is let go before
the next one is read. Where four are held together (`zscore_held`), the peer
mostly waits for new pages, which says more about malloc than about reading, so
that is stated and not judged. Goal: 5 times as fast.
"""

import json
import statistics
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import nnunet_route
import numpy as np
import torch
from bench_feed_zarr import entry_of
from ct_volume import SHAPE, real_ct
from harness import alternate, finish, paired_ratio
from nnunet_route import PATCH

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from voxscale.augment.spatial import SpatialConfig
from voxscale.chunks import to_float
from voxscale.config import to_dict
from voxscale.contract import InputContract
from voxscale.entry import Privacy
from voxscale.files import append_line
from voxscale.ledger import LEDGER
from voxscale.scan_folder import write_volume
from voxscale.store_root import create_store
from voxscale.stream import ShardStream, ShardStreamConfig
from voxscale.volume import Volume

GOAL, EACH, BRICKS = 5.0, 4, 30
FACTORS = (1.5, 1.25)  # edge of a brick over that of a patch: the default, and a tighter cut
STRIDES = ((2, 2, 2),) * 5
STILL = SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0))


def store_of_two(voxels, root):
    """A store of two scans: the volume, and the volume mirrored along x."""
    create_store(root / "store", {})
    for number, each in enumerate((voxels, np.ascontiguousarray(voxels[:, :, ::-1]))):
        key = f"{number:016x}"
        volume = Volume(each, np.diag([1.0, 0.7, 0.7, 1.0]), "CT")
        entry = replace(entry_of(volume), subject=f"s{number}", privacy=Privacy(face="none", text="none"))
        entry = write_volume(root / "store", key, volume, None, entry, {})
        row = {"id": key, "kind": "image", "status": "accepted", "entry": to_dict(entry)}
        append_line(root / "store" / LEDGER, json.loads(json.dumps(row)))


def packed(root, factor):
    """Shards whose bricks are so much larger than a patch."""
    contract = InputContract(spacing=(1.0, 0.7, 0.7))
    config = PackConfig(shard_mb=64, factor=factor)
    manifest = pack(root / "store", root / f"shards-{factor}", contract, PATCH, STRIDES, config)
    assert manifest is not None
    return manifest


def read_tars(folder, manifest):
    """Read every byte of every tar in order, into memory that is used again."""
    room = bytearray(1 << 22)
    for line in manifest.shards:
        with (folder / line.name).open("rb", buffering=0) as tar:
            while tar.readinto(room):
                pass


def main() -> None:
    """Measure against nnU-Net's route, against whole numbers in its format, and against reading the tars."""
    torch.set_num_threads(1)
    voxels = real_ct()
    generator = np.random.default_rng(2)
    count = EACH * (BRICKS + 1)
    starts = [tuple(int(generator.integers(n - 128 + 1)) for n in SHAPE) for _ in range(count)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store_of_two(voxels, root)
        reads = {}
        norms: tuple[nnunet_route.Norm, ...] = ("zscore", "ct", "none")
        for norm in norms:
            (root / norm).mkdir()
            nnunet_route.save(voxels, root / norm, norm)
            reads[norm] = nnunet_route.reader(root / norm)
        cells = {str(factor): cells_of(root, factor, reads, starts) for factor in FACTORS}
    ratio = cells[str(FACTORS[0])]["zscore"]["ratio"]
    finish(
        "feed_shards", ratio, GOAL, ratio >= GOAL, cells_by_brick_over_patch=cells, threads=1, patch=PATCH,
        patches_per_brick=EACH,
    )  # fmt: skip


def cells_of(root, factor, reads, starts):
    """All comparisons with bricks of one size."""
    manifest = packed(root, factor)
    folder = root / f"shards-{factor}"
    streams = {
        as_float: ShardStream(folder, ShardStreamConfig(views=1, patches=EACH, spatial=STILL, as_float=as_float), 0)
        for as_float in (True, False)
    }

    def ours(number, as_float=True):
        """The patches of a brick, one by one."""
        for index in range(number * EACH, (number + 1) * EACH):
            patches, damaged = streams[as_float].sample(index)
            assert not damaged
            yield torch.from_numpy(to_float(patches.pop().voxels) if not as_float else patches.pop().voxels)

    def stored(number):
        """The same, converted from stored numbers."""
        return ours(number, False)

    assert all(map(torch.equal, ours(0), stored(0)))
    sizes = {tuple(tensor.shape) for number in range(4) for tensor in ours(number)}
    assert all(a >= b for size in sizes for a, b in zip(size, PATCH, strict=True)), sizes
    peers = {
        norm: lambda number, read=read: (read(start) for start in starts[number * EACH :][:EACH])
        for norm, read in reads.items()
    }
    cells = {norm: compare(one_by_one(ours), one_by_one(peer)) for norm, peer in peers.items()}
    cells["zscore_held"] = compare(lambda number: list(ours(number)), lambda number: list(peers["zscore"](number)))
    cells["stored"] = compare(one_by_one(stored), one_by_one(peers["zscore"]))
    cells["raw_tar"] = against_tars(one_by_one(ours), folder, manifest)
    size = sum(line.bytes for line in manifest.shards)
    return cells | {"boxes": sorted(sizes), "bricks": manifest.samples, "tar_bytes": size}


def one_by_one(patches):
    """A function that reads the patches of a brick and keeps none."""
    return lambda number: deque(patches(number), maxlen=0)


def compare(ours, theirs):
    """CPU ratio, and CPU and wall milliseconds of one patch of both."""
    numbers = [iter(range(BRICKS + 1)), iter(range(BRICKS + 1))]
    times = alternate(lambda: ours(next(numbers[0])), lambda: theirs(next(numbers[1])), BRICKS)
    wall = []
    for read in (ours, theirs):
        began = time.perf_counter()
        for number in range(BRICKS):
            read(number)
        wall.append((time.perf_counter() - began) / BRICKS)
    return {
        "ratio": round(1 / paired_ratio(*times), 3),
        "ours_ms": round(1e3 * statistics.median(times[0]) / EACH, 3),
        "theirs_ms": round(1e3 * statistics.median(times[1]) / EACH, 3),
        "ours_wall_ms": round(1e3 * wall[0] / EACH, 3),
        "theirs_wall_ms": round(1e3 * wall[1] / EACH, 3),
    }


def against_tars(ours, folder, manifest):
    """The share of a patch's time that merely reading its brick's part of the tars takes."""
    numbers = iter(range(BRICKS + 1))
    times = alternate(lambda: ours(next(numbers)), lambda: read_tars(folder, manifest), BRICKS)
    theirs = [seconds / manifest.samples for seconds in times[1]]
    return {
        "ratio": round(1 / paired_ratio(times[0], theirs), 3),
        "ours_ms": round(1e3 * statistics.median(times[0]) / EACH, 3),
        "theirs_ms": round(1e3 * statistics.median(theirs) / EACH, 3),
    }


if __name__ == "__main__":
    main()
