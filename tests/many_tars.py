"""A folder of any number of shards without their tars: a manifest, and the indexes of those that are looked at."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from voxscale.config import to_dict
from voxscale.contract import InputContract
from voxscale.files import write_json
from voxscale.shards import Manifest, ManifestShard, SampleIndex, ShardIndex, index_name, manifest_text

STRIDES = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))
SIZE = 4096
"""Bytes of a brick, as far as an index knows."""

Bricks = Sequence[tuple[str, str, str]]
"""Scan, subject and group of each brick of a tar."""


def write_shards(
    folder: Path, groups: Sequence[Mapping[str, int]], bricks: Callable[[int], Bricks], indexes: Collection[int]
) -> None:
    """Write a folder that `ShardStream` opens.

    Args:
        folder: To be made.
        groups: Bricks of each group, of each tar.
        bricks: Of a tar, by its number.
        indexes: Tars whose index is written; all others have none.
    """
    folder.mkdir(parents=True)
    lines: list[ManifestShard] = []
    for number, counts in enumerate(groups):
        name, digest = f"shard-{number:05d}.tar", "0" * 64
        size = SIZE * sum(counts.values())
        if number in indexes:
            path = folder / index_name(name)
            samples = tuple(_sample(place, *brick) for place, brick in enumerate(bricks(number)))
            assert Counter(sample.group for sample in samples) == Counter(counts)
            write_json(
                path,
                to_dict(
                    ShardIndex(name=name, inputs="", bytes=size, sha256="", skipped_air=0, lost={}, samples=samples)
                ),
            )
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        line = ManifestShard(
            name=name,
            bytes=size,
            sha256="0" * 64,
            index_sha256=digest,
            samples=sum(counts.values()),
            groups=dict(counts),
        )
        lines.append(line)
    manifest = Manifest(
        contract=InputContract(),
        patch=(128, 128, 128),
        strides=STRIDES,
        config_hash="",
        samples=sum(line.samples for line in lines),
        volumes=0,
        skipped_air=0,
        shards=tuple(lines),
    )
    (folder / "manifest.json").write_bytes(manifest_text(manifest))


def _sample(place: int, volume: str, subject: str, group: str) -> SampleIndex:
    start = place * SIZE
    return SampleIndex(
        key=f"{volume}-{place}",
        volume=volume,
        subject=subject,
        group=group,
        span=(start, start + SIZE),
        json=(start + 512, 100),
        voxels=(start + 1536, 100),
        crc32c=0,
    )
