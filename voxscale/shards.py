"""Shards: bricks of scans in plain tar files, each with an index of offsets and checksums.

A brick is a box of a scan as one Zarr v3 shard, whose chunks are those of the
store: packing copies them and reading decodes only what a patch touches. A tar
is written with the `webdataset` library and can be read with it. On the
training path a brick is read by its offset instead, because WebDataset keeps no
position and notices neither a cut at a member boundary nor a flipped bit.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import Layout, one_shard
from voxscale.chunks import Blob, Box, Shard, open_shard, part_of, read_box
from voxscale.config import config, from_dict
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.folder import Access, Folder, open_folder
from voxscale.volume import Modality

SCHEMA = 2
VOXELS, MASK = "shard", "mask.shard"
"""Endings of a brick's members beside `json`."""
OPEN = 8
"""Tars kept open by a reader."""

Stride = tuple[int, int, int]
Strides = tuple[Stride, Stride, Stride, Stride, Stride]
Split = Literal["train", "holdout"]


@config
class BrickInfo:
    """What a brick says of itself, in its `.json` member.

    Attributes:
        volume: Anonymous id of the scan.
        subject: Keyed hash of the subject.
        start: First voxel of the brick in the scan (z, y, x).
        shape: Voxels along z, y, x.
        chunk: Voxels along z, y, x of a chunk.
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
    chunk: tuple[int, int, int]
    dtype: str
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    modality: Modality
    slope: float
    intercept: float
    percentiles: dict[str, float]


@config
class SampleIndex:
    """Where one brick stands in its tar.

    Attributes:
        key: Member name without its ending.
        volume: Anonymous id of the scan.
        subject: Keyed hash of the subject.
        group: What the brick counts as when samples are weighted, see `group_of`.
        json: Offset and length of the `.json` member's data.
        voxels: Offset and length of the `.shard` member's data, which holds checksums of its own.
        crc32c: Of the `.json` bytes.
        mask: Offset and length of the `.mask.shard` member's data, 1 where a voxel was blanked.
    """

    key: str
    volume: str
    subject: str
    group: str
    json: tuple[int, int]
    voxels: tuple[int, int]
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
        lost: Scans that could not be read, with the reason.
        samples: One per brick, in tar order.
    """

    name: str
    inputs: str
    bytes: int
    sha256: str
    skipped_air: int
    lost: dict[str, str]
    samples: tuple[SampleIndex, ...]


@config
class ManifestShard:
    """One line of the manifest.

    Attributes:
        name: File name of the tar.
        bytes: Its size.
        sha256: Of the tar.
        index_sha256: Of the index beside it.
        samples: Bricks.
        groups: Bricks of each group, see `group_of`.
        split: `holdout` for subjects that are kept from training.
    """

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    samples: int
    groups: dict[str, int]
    split: Split = "train"


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
        subjects: People that gave at least one brick, of each split; none is in both.
        skipped_air: Bricks left out because they show nearly only air.
        in_task: Scans left out because they are in the task that will be tested on.
        lost: Scans that could not be read, with the reason.
        shards: All tars.
    """

    schema_version: int = SCHEMA
    contract: InputContract
    patch: tuple[int, int, int]
    strides: Strides
    config_hash: str
    samples: int
    volumes: int
    subjects: dict[str, int] = field(default_factory=dict)
    skipped_air: int
    in_task: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    shards: tuple[ManifestShard, ...]


def group_of(dataset: str, modality: str, body_part: str | None) -> str:
    """Name of what is weighted together: data set, modality and body region."""
    return f"{dataset}/{modality}/{body_part or 'unknown'}"


def index_name(name: str) -> str:
    """Name of the index beside a tar."""
    return name.replace(".tar", ".index.json")


@dataclass(frozen=True, slots=True)
class Brick:
    """An open brick; voxels are decoded when they are asked for.

    Attributes:
        info: Its description.
        voxels: Its chunks.
        mask: Chunks of the mask of blanked voxels, None if none were.
    """

    info: BrickInfo
    voxels: Shard
    mask: Shard | None

    def layout(self, dtype: str | None = None) -> Layout:
        """How its arrays are cut."""
        return one_shard(self.info.shape, self.info.chunk, dtype or self.info.dtype)

    def read(self, box: Box | None = None, as_float: bool = False) -> NDArray[Any]:
        """Stored numbers, (z, y, x); see `voxscale.chunks.read_box`, None reads all.

        Raises:
            DataError: With reason `corrupt`.
        """
        return read_box(self.layout(), lambda _: self.voxels, box or self._all, as_float)

    def read_mask(self, box: Box | None = None) -> NDArray[np.uint8] | None:
        """1 where the privacy gate blanked a voxel, (z, y, x) uint8; None if it blanked none in the brick."""
        mask = self.mask
        return None if mask is None else read_box(self.layout("uint8"), lambda _: mask, box or self._all)

    @property
    def _all(self) -> Box:
        return [(0, n) for n in self.info.shape]


def open_manifest(path: Path, access: Access = "map") -> Manifest:
    """Read the manifest of a finished folder of shards.

    Raises:
        DataError: With reason `no_manifest` or `bad_schema` if it is unfinished or older, `corrupt` if it is damaged.
    """
    folder = open_folder(path, access)
    try:
        text = folder.read("manifest.json")
    except OSError:
        raise DataError(
            f"shards {folder.name} must hold a manifest.json; run data_prep pack to the end", "no_manifest"
        ) from None
    try:
        told = json.loads(text)
        found = told["schema_version"]
        if found == SCHEMA:
            return from_dict(Manifest, told, "manifest")
    except (ValueError, KeyError, TypeError):
        raise DataError("manifest.json must be as it was written; run data_prep pack again", "corrupt") from None
    raise DataError(f"manifest.json must be of schema {SCHEMA}, not {found}; pack again", "bad_schema")


class ShardReader:
    """Opens bricks of a folder of shards; indexes and tars are opened when they are needed, the last ones kept.

    Args:
        path: The folder, or its URL.
        manifest: Its manifest.
        access: How local files are read.
    """

    def __init__(self, path: Path, manifest: Manifest, access: Access = "map") -> None:
        self.path, self.manifest = path, manifest
        self._access: Access = access
        self._start()

    def _start(self) -> None:
        self.folder: Folder = open_folder(self.path, self._access)
        self._lines = {line.name: line for line in self.manifest.shards}
        self._indexes: Any = lru_cache(maxsize=4 * OPEN)(self._read_index)
        self._tars: Any = lru_cache(maxsize=OPEN)(self._open_tar)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "_access": self._access}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def index(self, name: str) -> ShardIndex:
        """The index of a tar.

        Raises:
            DataError: With reason `corrupt` if it is missing or changed.
        """
        return self._indexes(name)

    def _read_index(self, name: str) -> ShardIndex:
        try:
            text = self.folder.read(index_name(name))
        except OSError:
            text = b""
        if hashlib.sha256(text).hexdigest() != self._lines[name].index_sha256:
            raise DataError(f"shard {name} must have the index that the manifest says", "corrupt")
        return from_dict(ShardIndex, json.loads(text), name)

    def _open_tar(self, name: str) -> Blob:
        try:
            blob = self.folder.blob(name)
        except OSError:
            raise DataError(f"shard {name} must be as the manifest says, not missing", "corrupt") from None
        if blob.size != self._lines[name].bytes:
            raise DataError(f"shard {name} must be as the manifest says, not cut or changed", "corrupt")
        return blob

    def open(self, name: str, sample: SampleIndex) -> Brick:
        """Open one brick.

        Raises:
            DataError: With reason `corrupt`, naming shard and brick, if a byte differs from what was written.
        """
        tar = self._tars(name)
        try:
            meta = bytes(_bytes(tar, sample.json))
            if google_crc32c.value(meta) != sample.crc32c:
                raise DataError("json must have its checksum", "corrupt")
            info = from_dict(BrickInfo, json.loads(meta), sample.key)
            voxels = _shard(tar, sample.voxels, one_shard(info.shape, info.chunk, info.dtype))
            mask = None if sample.mask is None else _shard(tar, sample.mask, one_shard(info.shape, info.chunk, "uint8"))
        except (OSError, DataError):
            raise DataError(
                f"brick {sample.key} in {name} must have the checksum it was written with", "corrupt"
            ) from None
        return Brick(info, voxels, mask)


def _bytes(tar: Blob, where: tuple[int, int]) -> Any:
    return part_of(tar, where[0], where[0] + where[1]).whole()


def _shard(tar: Blob, where: tuple[int, int], layout: Layout) -> Shard:
    return open_shard(part_of(tar, where[0], where[0] + where[1]), layout)


def decoded_bytes(info: BrickInfo) -> int:
    """Size of a brick's voxels in memory."""
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize


def count_groups(samples: tuple[SampleIndex, ...]) -> Mapping[str, int]:
    """Bricks of each group, by name."""
    names = [sample.group for sample in samples]
    return {name: names.count(name) for name in sorted(set(names))}
