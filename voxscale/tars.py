"""Writing a shard: bricks into a tar with the `webdataset` library, then its index."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import google_crc32c

from voxscale.files import temporary
from voxscale.folder import Folder
from voxscale.shards import (
    BLOCK,
    MASK,
    VOXELS,
    BrickInfo,
    SampleIndex,
    ShardIndex,
    index_name,
    index_text,
    payloads,
    written,
)

Cut = tuple[BrickInfo, str, bytes, bytes | None]
"""Description, group, shard of the voxels, and shard of the mask of blanked voxels, if any were."""


class _Hashed(io.BufferedWriter):
    """A file whose bytes are hashed as they are written, from the first to the last."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write and hash."""
        self.sha256.update(data)
        return super().write(data)


def write_shard(
    folder: Folder,
    name: str,
    bricks: Iterable[Cut],
    inputs: str,
    left_out: Callable[[], tuple[int, dict[str, str]]],
    scratch: Path,
) -> ShardIndex:
    """Write one tar and its index, both complete or not at all.

    Args:
        folder: Where they go.
        name: File name ending in `.tar`.
        bricks: What is written, in order.
        inputs: Hash of what the shard is made from.
        left_out: Called at the end: bricks of air, and scans that could not be read with the reason.
        scratch: Local folder for the unfinished tar, on the same file system as a local `folder`.
    """
    beside = temporary(scratch / name)  # two workers may write the same tar
    try:
        keys, sha256 = _write_tar(beside, bricks)
        skipped, lost = left_out()
        found = tuple(_locate(beside, keys))
        index = ShardIndex(
            name=name,
            inputs=inputs,
            bytes=beside.stat().st_size,
            sha256=sha256,
            skipped_air=skipped,
            lost=lost,
            samples=tuple(sample for sample in found if sample.level == 0),
            coarse=tuple(sample for sample in found if sample.level > 0),
        )
        folder.put(beside, name)
    finally:
        beside.unlink(missing_ok=True)
    folder.write(index_name(name), index_text(index))
    return index


def _tar_writer(handle: _Hashed) -> Any:
    """A `webdataset.TarWriter`, with webdataset's dangerous parts (pipes, evaluated URLs) off in this process."""
    os.environ["WDS_SECURE"] = "1"  # looked at when webdataset is imported
    from webdataset import utils
    from webdataset.writer import TarWriter

    utils.__dict__["enforce_security"] = True  # somebody else may have imported it before
    return TarWriter(handle, encoder=False, mtime=0, user="", group="")


_Key = tuple[str, BrickInfo, str]


def _write_tar(path: Path, bricks: Iterable[Cut]) -> tuple[list[_Key], str]:
    """Write the members; returns key, description and group of every brick, and the tar's SHA-256."""
    keys: list[_Key] = []
    counts: dict[str, int] = {}
    with _Hashed(path) as handle:
        with _tar_writer(handle) as tar:
            for info, group, voxels, mask in bricks:
                if info.level:
                    key = f"{info.volume}--{info.level}"
                else:
                    number = counts.get(info.volume, 0)
                    counts[info.volume] = number + 1
                    key = f"{info.volume}-{number:05d}"
                meta = json.dumps(written(info), sort_keys=True).encode()
                members = {"__key__": key, "json": meta, VOXELS: voxels}
                if mask is not None:
                    members[MASK] = mask
                tar.write(members)
                keys.append((key, info, group))
        return keys, handle.sha256.hexdigest()


def _locate(path: Path, keys: list[_Key]) -> Iterable[SampleIndex]:
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
    with path.open("rb") as handle:
        for key, info, group in keys:
            found = {end: members[f"{key}.{end}"] for end in ("json", VOXELS, MASK) if f"{key}.{end}" in members}
            places = {end: (member.offset_data, member.size) for end, member in found.items()}
            ends = [start + -(-size // BLOCK) * BLOCK for start, size in places.values()]
            sample = SampleIndex(
                key=key,
                volume=info.volume,
                subject=info.subject,
                group=group,
                span=(min(member.offset for member in found.values()), max(ends)),
                json=places["json"],
                voxels=places[VOXELS],
                crc32c=0,
                mask=places.get(MASK),
                level=info.level,
            )
            yield replace(sample, crc32c=_rest_crc(handle, sample))


def _rest_crc(handle: IO[bytes], sample: SampleIndex) -> int:
    """Checksum of all bytes of a brick but those of its arrays."""
    rest, at = 0, sample.span[0]
    for start, length in [*payloads(sample), (sample.span[1], 0)]:
        handle.seek(at)
        rest = int(google_crc32c.extend(rest, handle.read(start - at)))
        at = start + length
    return rest
