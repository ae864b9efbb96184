"""Shards: bricks of scans in plain tar files, each with an index of offsets and checksums.

A brick is a box of a scan as one Zarr v3 shard, whose chunks are those of the
store: packing copies them and reading decodes only what a patch touches. A tar
is written with the `webdataset` library and can be read with it. On the
training path a brick is read by its offset instead, because WebDataset keeps no
position and notices neither a cut at a member boundary nor a flipped bit.
"""

import dataclasses
import hashlib
import heapq
import json
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, cast

from voxscale.config import Hash, config, from_dict, to_dict
from voxscale.contract import InputContract
from voxscale.entry import Occupancy
from voxscale.errors import DataError
from voxscale.files import json_crc
from voxscale.folder import Access, open_folder
from voxscale.volume import Modality

SCHEMA = 5
OLDER = (3, 4)
"""Schemas that are still read, whose bricks do not say by which settings they were made; packing makes them anew."""
LATER = {"scan": None, "level": 0, "coarse": [], "levels": 1}
"""Fields that are not written where shards have no coarser levels, and what they are then."""
VOXELS, MASK = "shard", "mask.shard"
"""Endings of a brick's members beside `json`."""
BLOCK = 512
"""Bytes of a tar's header; the data of a member end at a multiple of it."""

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
        occupancy: Where the body is: those cells of the scan's grid that the brick touches, if they are known.
        lead: Voxels along z, y, x by which the first of these cells begins before the brick.
        scan: Voxels of the whole scan, where coarser levels of it lie in the same tar.
        level: Of the scan's pyramid, see `voxscale.pyramid`; place, shape, spacing and affine are the level's own.
        ingest: Hash of the settings that took the scan in, see `voxscale.entry.Entry`.
        pack: Hash of the settings that it was cut under, that of the manifest; None before schema 5.
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
    occupancy: Occupancy | None = None
    lead: tuple[int, int, int] = (0, 0, 0)
    scan: tuple[int, int, int] | None = None
    level: int = 0
    ingest: Hash | None = None
    pack: Hash | None = None


@config
class SampleIndex:
    """Where one brick stands in its tar.

    Attributes:
        key: Member name without its ending: hexadecimal digits and dashes.
        volume: Anonymous id of the scan.
        subject: Keyed hash of the subject.
        group: What the brick counts as when samples are weighted, see `voxscale.entry.group_of`.
        span: First byte of the brick's first header, and the byte after the padding of its last member.
        json: Offset and length of the `.json` member's data.
        voxels: Offset and length of the `.shard` member's data, which holds checksums of its own.
        crc32c: Of all bytes of the span but those of `voxels` and `mask`: headers, JSON and padding.
        mask: Offset and length of the `.mask.shard` member's data, 1 where a voxel was blanked.
        level: Of the scan's pyramid.
    """

    key: str
    volume: str
    subject: str
    group: str
    span: tuple[int, int]
    json: tuple[int, int]
    voxels: tuple[int, int]
    crc32c: int
    mask: tuple[int, int] | None = None
    level: int = 0


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
        coarse: Coarser levels of the bricks' scans, each whole; they are no samples.
    """

    name: str
    inputs: str
    bytes: int
    sha256: str
    skipped_air: int
    lost: dict[str, str]
    samples: tuple[SampleIndex, ...]
    coarse: tuple[SampleIndex, ...] = ()


@config
class ManifestShard:
    """One line of the manifest.

    Attributes:
        name: File name of the tar.
        bytes: Its size.
        sha256: Of the tar.
        index_sha256: Of the index beside it.
        samples: Bricks.
        groups: Bricks of each group, see `voxscale.entry.group_of`.
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
        config_hash: Of the packing config, contract and patch; every brick tells it too.
        samples: Bricks in all shards.
        volumes: Scans that gave at least one brick.
        subjects: People that gave at least one brick, of each split; none is in both.
        skipped_air: Bricks left out because they show nearly only air.
        in_task: Scans left out because they are in the task that will be tested on.
        lost: Scans that could not be read, with the reason.
        shards: All tars.
        levels: Most levels of a scan that there are, the finest one included.
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
    levels: int = 1


def written(value: Any) -> Any:
    """One of these configs, or a part of it, as JSON values: without fields on coarser levels that say nothing."""
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    if isinstance(plain, dict):
        found = cast(dict[str, Any], plain).items()
        return {key: written(part) for key, part in found if key not in LATER or part != LATER[key]}
    return [written(part) for part in cast(list[Any], plain)] if isinstance(plain, list) else plain


def index_name(name: str) -> str:
    """Name of the index beside a tar."""
    return name.replace(".tar", ".index.json")


def open_manifest(path: Path, access: Access = "map") -> Manifest:
    """Read the manifest of a finished folder of shards, or of its URL.

    Raises:
        DataError: With reason `no_manifest` or `bad_schema` if it is unfinished or older, `corrupt` if it is damaged.
    """
    return read_manifest(path, access)[0]


def manifest_text(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, with a checksum of its own."""
    return _with_crc(written(manifest))


def index_text(index: ShardIndex) -> bytes:
    """The bytes of a tar's index, with a checksum of its own: packing takes up what it says of a tar that is there."""
    return _with_crc(written(index))


def parse_index(text: bytes, name: str) -> tuple[ShardIndex, bool]:
    """The index of a tar, and whether it has a checksum: those of earlier versions have none.

    Raises:
        DataError: With reason `corrupt` if it is none, or was changed.
    """
    try:
        told = json.loads(text)
        crc = told.pop("crc32c", None)
        found = from_dict(ShardIndex, told, name)
        if found.name != name or crc not in (None, json_crc(told)):
            raise ValueError("changed")
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DataError(f"shard {name} must have an index as it was written; pack again", "corrupt") from None
    return found, crc is not None


def _with_crc(told: dict[str, Any]) -> bytes:
    return (json.dumps(told | {"crc32c": json_crc(told)}, indent=1) + "\n").encode()


def read_manifest(path: Path, access: Access = "map") -> tuple[Manifest, str]:
    """The manifest and the SHA-256 of its bytes; errors as in `open_manifest`."""
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
        if found in (*OLDER, SCHEMA):
            if told.pop("crc32c") != json_crc(told):
                raise ValueError("changed")
            return from_dict(Manifest, told, "manifest"), hashlib.sha256(text).hexdigest()
    except (ValueError, KeyError, TypeError):
        raise DataError("manifest.json must be as it was written; run data_prep pack again", "corrupt") from None
    raise DataError(
        f"manifest.json must be of schema {', '.join(map(str, OLDER))} or {SCHEMA}, not {found}; pack again",
        "bad_schema",
    )


def payloads(sample: SampleIndex) -> list[tuple[int, int]]:
    """Offset and length of the data of a brick that have checksums of their own, in the order of the tar."""
    return sorted([sample.voxels, *([] if sample.mask is None else [sample.mask])])


def check_index(index: ShardIndex, name: str, size: int) -> None:
    """Refuse an index whose names or places cannot be those of a tar of this size; nothing is read for it.

    Raises:
        DataError: With reason `corrupt`.
    """
    at = 0
    for number, sample in enumerate(heapq.merge(index.samples, index.coarse, key=lambda each: each.span[0])):
        parts = sorted([sample.json, *payloads(sample)])
        ends = [sample.span[0], *(start + length for start, length in parts)]
        apart = all(end + BLOCK <= start and length >= 0 for end, (start, length) in zip(ends, parts, strict=False))
        inside = at <= sample.span[0] and ends[-1] <= sample.span[1] <= size
        if not (_KEY.fullmatch(sample.key) and apart and inside):
            raise DataError(
                f"index of {name} must name bricks and places inside the tar, not brick {number}", "corrupt"
            )
        at = sample.span[1]


_KEY = re.compile(r"[0-9a-f-]{1,64}")


def count_groups(samples: tuple[SampleIndex, ...]) -> Mapping[str, int]:
    """Bricks of each group, by name."""
    names = [sample.group for sample in samples]
    return {name: names.count(name) for name in sorted(set(names))}
