"""Reading bricks out of shards by their offsets, every byte that is used checked before it is used."""

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import NUMBERS, Layout, one_shard
from voxscale.blobs import Blob, Held, part_of
from voxscale.chunks import Box, Shard, open_shard, read_boxes
from voxscale.config import from_dict
from voxscale.errors import DataError
from voxscale.folder import Access, Folder, open_folder
from voxscale.shards import (
    BLOCK,
    MASK,
    SCHEMA,
    VOXELS,
    BrickInfo,
    Manifest,
    SampleIndex,
    ShardIndex,
    check_index,
    index_name,
    parse_index,
    payloads,
)

OPEN = 16
"""Tars and indexes kept open by a reader, at least."""


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

    def read(self, boxes: Sequence[Box] | None = None, as_float: bool = False) -> list[NDArray[Any]]:
        """Stored numbers of boxes, (z, y, x) each; see `voxscale.chunks.read_boxes`, None reads all.

        Raises:
            DataError: With reason `corrupt`.
        """
        return read_boxes(self.layout(), lambda _: self.voxels, boxes or self._all, as_float)

    def read_mask(self, boxes: Sequence[Box] | None = None) -> list[NDArray[np.uint8]] | None:
        """1 where the privacy gate blanked a voxel, (z, y, x) uint8 of each box; None if it blanked none of all."""
        mask = self.mask
        return None if mask is None else read_boxes(self.layout("uint8"), lambda _: mask, boxes or self._all)

    @property
    def _all(self) -> list[Box]:
        return [[(0, n) for n in self.info.shape]]


class ShardReader:
    """Opens bricks of a folder of shards; indexes and tars are opened when they are needed, the last ones kept.

    Args:
        path: The folder, or its URL.
        manifest: Its manifest.
        access: How local files are read.
        keep: Tars that are read in turn, which are kept open.
    """

    def __init__(self, path: Path, manifest: Manifest, access: Access = "map", keep: int = OPEN) -> None:
        self.path, self.manifest = path, manifest
        self._access: Access = access
        self._keep = max(keep, OPEN)
        self._start()

    def _start(self) -> None:
        self.folder: Folder = open_folder(self.path, self._access)
        self._lines = {line.name: line for line in self.manifest.shards}
        self._indexes: Any = lru_cache(maxsize=self._keep)(self._read_index)
        self._tars: Any = lru_cache(maxsize=self._keep)(self._open_tar)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "_access": self._access, "_keep": self._keep}

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
        found, _ = parse_index(text, name)
        check_index(found, name, self._lines[name].bytes)
        return found

    def _open_tar(self, name: str) -> Blob:
        try:
            blob = self.folder.blob(name, self._lines[name].bytes)
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
            info, span = _opened(tar, sample)
            self._check_made(info)
            if info.dtype not in NUMBERS:
                raise DataError("bricks must hold numbers as stores do", "corrupt")
            voxels = _shard(span, sample, sample.voxels, one_shard(info.shape, info.chunk, info.dtype))
            layout = one_shard(info.shape, info.chunk, "uint8")
            mask = None if sample.mask is None else _shard(span, sample, sample.mask, layout)
        except (OSError, ValueError, TypeError, ArithmeticError):  # the last two of forged shapes and number types
            raise DataError(
                f"brick {sample.key} in {name} must have the checksum it was written with", "corrupt"
            ) from None
        return Brick(info, voxels, mask)

    def _check_made(self, info: BrickInfo) -> None:
        """Refuse a brick that was cut under other settings than the manifest says."""
        if info.pack != (self.manifest.config_hash if self.manifest.schema_version == SCHEMA else None):
            raise DataError("bricks must be cut under the manifest's settings", "corrupt")


def _opened(tar: Blob, sample: SampleIndex) -> tuple[BrickInfo, Held]:
    """Description of a brick, once all of it but its chunks is checked, and its bytes, read in one piece."""
    span = part_of(tar, *sample.span)
    rest = 0
    at = sample.span[0]
    for start, length in [*payloads(sample), (sample.span[1], 0)]:
        rest = google_crc32c.extend(rest, span.ranges([(at - sample.span[0], start - sample.span[0])])[0])
        at = start + length
    if rest != sample.crc32c:
        raise DataError("headers, json and padding must have their checksum", "corrupt")
    members = {"json": sample.json, VOXELS: sample.voxels, MASK: sample.mask}
    for end, where in members.items():
        if where is not None:
            first = where[0] - BLOCK - sample.span[0]
            _check_member(span.ranges([(first, first + BLOCK)])[0], f"{sample.key}.{end}")
    start = sample.json[0] - sample.span[0]
    (meta,) = span.ranges([(start, start + sample.json[1])])
    return from_dict(BrickInfo, json.loads(meta), sample.key), span


def _check_member(header: bytes, name: str) -> None:
    """Refuse a link, a device, or another name than the index says, in an index that was made to fit it too."""
    folder = header[345:500].strip(b"\0")  # which tars put before the name
    named = header[:100].rstrip(b"\0") == name.encode() and not folder
    if not named or header[156:157] not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise DataError("members must be plain files with the names of the index", "corrupt")


def _shard(span: Held, sample: SampleIndex, where: tuple[int, int], layout: Layout) -> Shard:
    start = where[0] - sample.span[0]
    return open_shard(part_of(span, start, start + where[1]), layout)
