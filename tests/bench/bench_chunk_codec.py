"""Chunk shapes and codecs of 16-bit voxels, beside those of the store: `make bench ONLY=chunk_codec`.

A CT of 300 x 512 x 512 (real and upsampled, else a phantom) and, where there is one, a real MR as it is. Each setting
writes the whole volume as one shard and is timed in turn with the chosen one on the same random patches, one thread,
warm page cache. `read` is our reader, into float32, all checksums compared; it has a fast way for bit planes in LZ4 and
no other, so beside it is `decode`, numcodecs on the chunks touched, which is the same code for all. `ratio`: time to
read with the chosen setting over the best of those that take at most 1.15 times its bytes, CT; goal at most 1.1.
"""

import itertools
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import nibabel as nib
import numcodecs.blosc
import numpy as np
from ct_volume import SCAN, phantom_ct, real_ct
from harness import ROOT, alternate, finish, paired_ratio

from voxscale.arrays import CHUNK, LEVEL_16, chunk_bytes, cut_chunk, encode_shard, one_shard, write_array
from voxscale.blobs import Mapped
from voxscale.chunks import open_shard, read_box

GOAL, MOST_BYTES = 1.1, 1.15
READS, DECODES = 25, 9
PATCH = 128
MR = ROOT.parent / "shared" / "data" / "mr_unlabelled" / "mr_brain_t1_msl03.nii.gz"
CHUNKS = ((32, 32, 32), (16, 16, 16), (16, 32, 32), (8, 64, 64), (32, 64, 64), (64, 64, 64))
CODECS = (
    ("lz4hc", LEVEL_16, "bitshuffle"), ("lz4hc", 5, "bitshuffle"), ("lz4", 5, "bitshuffle"),
    ("lz4hc", LEVEL_16, "shuffle"), ("lz4hc", 5, "shuffle"), ("lz4", 5, "shuffle"),
    ("zstd", 1, "bitshuffle"), ("zstd", 3, "bitshuffle"), ("zstd", 1, "shuffle"), ("zstd", 3, "shuffle"),
    ("lz4", 0, "noshuffle"),
)  # fmt: skip
"""Codec, level and filter; level 0 is not compressed."""


@dataclass(frozen=True)
class Setting:
    """How a volume is cut and coded."""

    chunk: tuple[int, int, int]
    codec: str
    level: int
    planes: str

    @property
    def name(self):
        """In one line."""
        code = f"{self.codec} {self.level} {self.planes}" if self.level else "uncompressed"
        return f"{'x'.join(map(str, self.chunk))} {code}"

    def encode(self, chunk):
        """A Blosc frame. LZ4 in one block, which is what our reader is fast at; zstd in blocks of Blosc's choice."""
        planes = getattr(numcodecs.blosc, self.planes.upper())
        block = 0 if self.codec == "zstd" else chunk.nbytes
        return numcodecs.blosc.compress(chunk, self.codec.encode(), self.level, planes, block)


CHOSEN = Setting((CHUNK, CHUNK, CHUNK), "lz4hc", LEVEL_16, "bitshuffle")


class Stored:
    """A volume as one shard in a mapped file."""

    def __init__(self, voxels, setting, path):
        self.layout = one_shard(voxels.shape, setting.chunk, voxels.dtype.name)
        began = time.process_time()
        chunks = []
        for place in np.ndindex(*self.layout.per_shard):
            begin = [k * c for k, c in zip(place, setting.chunk, strict=True)]
            frame = setting.encode(cut_chunk(voxels, begin, setting.chunk))
            chunks.append(frame + google_crc32c.value(frame).to_bytes(4, "little"))
        path.write_bytes(encode_shard(self.layout, chunks))
        self.write_s = time.process_time() - began
        self.shard = open_shard(Mapped(path), self.layout)
        self.bytes = path.stat().st_size
        self.room = np.empty(self.layout.chunk_bytes, np.uint8)

    def read(self, box):
        """By our reader."""
        return read_box(self.layout, lambda _: self.shard, box, as_float=True)

    def decode(self, box):
        """By numcodecs, chunk by chunk, into the same memory."""
        spans = [range(a // c, -(-b // c)) for (a, b), c in zip(box, self.layout.chunk, strict=True)]
        view = self.shard.blob.whole()
        for place in itertools.product(*spans):
            offset, size = self.shard.index[np.ravel_multi_index(place, self.layout.per_shard)].tolist()
            numcodecs.blosc.decompress(view[offset : offset + size - 4], self.room)


def in_turn(chosen, other, boxes):
    """CPU milliseconds of the other, and the ratio to the chosen one."""
    places = iter(boxes), iter(boxes)
    ours, theirs = alternate(lambda: chosen(next(places[0])), lambda: other(next(places[1])), len(boxes) - 1)
    return round(1e3 * statistics.median(theirs), 3), round(paired_ratio(theirs, ours), 3)


def row_of(voxels, setting, chosen, boxes, path):
    """What one setting takes, beside the chosen one."""
    stored = Stored(voxels, setting, path)
    assert np.array_equal(stored.read(boxes[0]), voxels[tuple(slice(a, b) for a, b in boxes[0])])
    read_ms, read_ratio = in_turn(chosen.read, stored.read, boxes)
    decode_ms, decode_ratio = in_turn(chosen.decode, stored.decode, boxes[:DECODES])
    return {
        "bytes": round(stored.bytes / voxels.nbytes, 4),
        "bytes_over_chosen": round(stored.bytes / chosen.bytes, 3),
        "read_ms": read_ms,
        "read_over_chosen": read_ratio,
        "decode_ms": decode_ms,
        "decode_over_chosen": decode_ratio,
        "write_ms_per_mb": round(1e9 * stored.write_s / voxels.nbytes, 3),
    }


def measure(voxels, root):
    """Rows of all settings, and how the chosen one stands among them."""
    draw = np.random.default_rng(1)
    boxes = []
    for _ in range(READS):
        edges = [min(PATCH, n) for n in voxels.shape]
        starts = [int(draw.integers(n - edge + 1)) for n, edge in zip(voxels.shape, edges, strict=True)]
        boxes.append([(a, a + edge) for a, edge in zip(starts, edges, strict=True)])
    chosen = Stored(voxels, CHOSEN, root / "chosen")
    write_array(root / "array", voxels)
    assert chunk_bytes(root) == chosen.bytes  # what is measured is what a store writes
    settings = [Setting(chunk, *code) for chunk, code in itertools.product(CHUNKS, CODECS)]
    rows = {each.name: row_of(voxels, each, chosen, boxes, root / "other") for each in settings}
    out = {
        "shape": voxels.shape,
        "dtype": voxels.dtype.name,
        "mb": round(voxels.nbytes / 1e6, 1),
        "chosen": CHOSEN.name,
    }
    small = {name: row for name, row in rows.items() if row["bytes_over_chosen"] <= MOST_BYTES}
    for kind in ("read", "decode"):
        best = min(small, key=lambda name, kind=kind: small[name][f"{kind}_over_chosen"])
        out[f"{kind}_ratio"] = round(max(1.0, 1 / small[best][f"{kind}_over_chosen"]), 3)
        out[f"{kind}_best"] = best
        out[f"{kind}_front"] = front(rows, f"{kind}_over_chosen")
    return out | {"settings": rows}


def front(rows, time_of):
    """Settings than which no other is both smaller and faster, smallest first."""
    found, least = [], math.inf
    for name in sorted(rows, key=lambda name: (rows[name]["bytes"], rows[name][time_of])):
        if rows[name][time_of] < least:
            least = rows[name][time_of]
            found.append(name)
    return found


def main() -> None:
    """Measure both volumes."""
    real = SCAN.is_file()
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        voxels = real_ct() if real else phantom_ct()
        cells["ct"] = {"real": real} | measure(voxels, Path(folder))
    if MR.is_file():
        with tempfile.TemporaryDirectory() as folder:
            voxels = np.ascontiguousarray(np.asarray(nib.load(MR).dataobj).T)
            cells["mr"] = {"real": True} | measure(voxels, Path(folder))
    ratio = cells["ct"]["read_ratio"]
    more = {
        "criterion": f"time to read, chosen over the best of at most {MOST_BYTES} times its bytes; CT",
        "ratio_mr": cells["mr"]["read_ratio"] if "mr" in cells else None,
    }
    finish("chunk_codec", ratio, GOAL, ratio <= GOAL, **more, cells=cells, threads=1, patch=PATCH)


if __name__ == "__main__":
    main()
