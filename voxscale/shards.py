"""Shards: bricks of scans in plain tar files, each with an index of offsets and checksums.

A tar is written with the `webdataset` library and can be read with it. On the
training path a brick is read by its offset instead, because WebDataset keeps no
position and notices neither a cut at a member boundary nor a flipped bit.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from voxscale.config import config, from_dict, to_dict
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.files import sha256_file, sync, write_json
from voxscale.volume import Modality

SCHEMA = 1

Stride = tuple[int, int, int]
Strides = tuple[Stride, Stride, Stride, Stride, Stride]


@config
class BrickInfo:
    """What a brick says of itself, in its `.json` member.

    Attributes:
        volume: Anonymous id of the scan.
        subject: Keyed hash of the subject.
        start: First voxel of the brick in the scan (z, y, x).
        shape: Voxels along z, y, x.
        dtype: Number type as stored.
        spacing: mm along z, y, x.
        affine: 4x4 of the brick itself, (z, y, x, 1) -> (S, A, R, 1) mm.
        modality: Of the scan.
        slope: Values per stored step.
        intercept: Value of a stored zero.
        percentiles: Of the whole scan, for the contract's intensity map.
    """

    volume: str
    subject: str
    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    dtype: str
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    modality: Modality
    slope: float
    intercept: float
    percentiles: dict[str, float]


Brick = tuple[BrickInfo, NDArray[Any], NDArray[np.uint8] | None]
"""Description, voxels, and 1 where the privacy gate blanked a voxel."""


@config
class SampleIndex:
    """Where one brick stands in its tar.

    Attributes:
        key: Member name without its ending.
        volume: Anonymous id of the scan.
        subject: Keyed hash of the subject.
        json: Offset and length of the `.json` member's data.
        npy: Offset and length of the `.npy` member's data.
        crc32c: Of the `.json` bytes, the `.npy` bytes and those of the mask, if there is one.
        mask: Offset and length of the `.mask.npy` member's data: packed bits, 1 where a voxel was blanked.
    """

    key: str
    volume: str
    subject: str
    json: tuple[int, int]
    npy: tuple[int, int]
    crc32c: int
    mask: tuple[int, int] | None = None


@config
class ShardIndex:
    """The file `shard-00000.index.json` beside a tar; written after it, so a tar without one is unfinished.

    Attributes:
        name: File name of the tar.
        inputs: Hash of the volumes and the config it was made from.
        bytes: Size of the tar.
        sha256: Of the tar.
        skipped_air: Bricks left out because they show nearly only air.
        samples: One per brick, in tar order.
    """

    name: str
    inputs: str
    bytes: int
    sha256: str
    skipped_air: int
    samples: tuple[SampleIndex, ...]


@config
class ManifestShard:
    """One line of the manifest: a tar, its count and the hashes of tar and index."""

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    samples: int


@config
class Manifest:
    """The file `manifest.json`: written last, it makes a folder of shards readable.

    Attributes:
        schema_version: Of this file.
        contract: Input contract that the bricks were cut for.
        patch: Patch size (z, y, x) that the bricks were cut for.
        strides: (z, y, x) stride of each downsampling step that this patch allows.
        config_hash: Of the packing config.
        samples: Bricks in all shards.
        volumes: Scans that gave at least one brick.
        skipped_air: Bricks left out because they show nearly only air.
        in_task: Scans left out because they are in the task that will be tested on.
        shards: All tars.
    """

    schema_version: int = SCHEMA
    contract: InputContract
    patch: tuple[int, int, int]
    strides: Strides
    config_hash: str
    samples: int
    volumes: int
    skipped_air: int
    in_task: int = 0
    shards: tuple[ManifestShard, ...]


def write_shard(folder: Path, name: str, bricks: Iterable[Brick], inputs: str, skipped_air: Any) -> ShardIndex:
    """Write one tar and its index, both complete or not at all.

    Args:
        folder: Shard folder.
        name: File name ending in `.tar`.
        bricks: Description and voxels of each brick, and where voxels were blanked, if any were.
        inputs: Hash of what the shard is made from.
        skipped_air: Function without arguments, called at the end, that counts what was left out.
    """
    beside = folder / f".{name}.tmp"
    try:
        keys = _write_tar(beside, bricks)
        index = ShardIndex(
            name=name,
            inputs=inputs,
            bytes=beside.stat().st_size,
            sha256=sha256_file(beside),
            skipped_air=skipped_air(),
            samples=tuple(_locate(beside, keys)),
        )
        sync(beside)
        beside.replace(folder / name)
    finally:
        beside.unlink(missing_ok=True)
    write_json(index_path(folder, name), to_dict(index))
    return index


def _write_tar(path: Path, bricks: Iterable[Brick]) -> list[tuple[str, BrickInfo]]:
    """Write the members; returns the key of every brick."""
    keys: list[tuple[str, BrickInfo]] = []
    counts: dict[str, int] = {}
    with path.open("wb") as handle, TarWriter(handle, encoder=False, mtime=0, user="", group="") as tar:
        for info, voxels, removed in bricks:
            number = counts.get(info.volume, 0)
            counts[info.volume] = number + 1
            key = f"{info.volume}-{number:05d}"
            meta = json.dumps(to_dict(info), sort_keys=True).encode()
            members = {"__key__": key, "json": meta, "npy": _npy(voxels)}
            if removed is not None:
                members["mask.npy"] = _npy(np.packbits(removed.astype(bool)))
            tar.write(members)
            keys.append((key, info))
    return keys


def _npy(array: NDArray[Any]) -> bytes:
    payload = io.BytesIO()
    np.save(payload, array, allow_pickle=False)
    return payload.getvalue()


def index_path(folder: Path, name: str) -> Path:
    """Path of the index beside a tar."""
    return folder / name.replace(".tar", ".index.json")


def _locate(path: Path, keys: list[tuple[str, BrickInfo]]) -> Iterable[SampleIndex]:
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    with path.open("rb") as handle:
        for key, info in keys:
            meta, npy, mask = (places.get(f"{key}.{ending}") for ending in ("json", "npy", "mask.npy"))
            assert meta is not None  # both were just written
            assert npy is not None
            parts = [meta, npy] if mask is None else [meta, npy, mask]
            crc = google_crc32c.value(b"".join(_read_at(handle, *part) for part in parts))
            yield SampleIndex(
                key=key, volume=info.volume, subject=info.subject, json=meta, npy=npy, crc32c=crc, mask=mask
            )


def _read_at(handle: io.BufferedReader, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)


def open_manifest(folder: Path) -> tuple[Manifest, tuple[ShardIndex, ...]]:
    """Read a finished folder of shards.

    Raises:
        DataError: If it is unfinished, or a tar or index is missing, cut or changed.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(f"shards {folder.name} must hold a manifest.json; run data_prep pack to the end", "no_manifest")
    manifest = from_dict(Manifest, json.loads(path.read_text()), "manifest")
    indexes: list[ShardIndex] = []
    for shard in manifest.shards:
        tar, index = folder / shard.name, index_path(folder, shard.name)
        size = tar.stat().st_size if tar.is_file() else -1
        if size != shard.bytes or not index.is_file() or sha256_file(index) != shard.index_sha256:
            raise DataError(f"shard {shard.name} must be as the manifest says, not missing, cut or changed", "corrupt")
        indexes.append(from_dict(ShardIndex, json.loads(index.read_text()), shard.name))
    return manifest, tuple(indexes)


def read_brick(folder: Path, shard: str, sample: SampleIndex) -> tuple[BrickInfo, NDArray[Any]]:
    """Description and voxels of one brick; see `read_masked_brick`."""
    info, voxels, _ = read_masked_brick(folder, shard, sample)
    return info, voxels


def read_masked_brick(folder: Path, shard: str, sample: SampleIndex) -> Brick:
    """Read one brick by its offsets and check its checksum.

    Returns:
        Description, voxels, and where voxels were blanked (uint8), or None if none were.

    Raises:
        DataError: With reason `corrupt`, naming shard and brick, if a byte differs from what was written.
    """
    with (folder / shard).open("rb") as handle:
        meta, payload = (_read_at(handle, *part) for part in (sample.json, sample.npy))
        mask = b"" if sample.mask is None else _read_at(handle, *sample.mask)
    if google_crc32c.value(meta + payload + mask) != sample.crc32c:
        raise DataError(f"brick {sample.key} in {shard} must have the checksum it was written with", "corrupt")
    voxels = np.load(io.BytesIO(payload), allow_pickle=False)
    info = from_dict(BrickInfo, json.loads(meta), sample.key)
    if not mask:
        return info, voxels, None
    bits = np.load(io.BytesIO(mask), allow_pickle=False)
    return info, voxels, np.unpackbits(bits, count=voxels.size).reshape(voxels.shape)


def brick_cache(bricks: int) -> Any:
    """`read_brick` behind a small cache, for one process; neighbouring crops of a brick then cost one read."""
    return lru_cache(maxsize=bricks)(read_brick)
