"""Pack a store into shards: `python -m data_prep pack STORE SHARDS --plan PLAN.json`."""

import argparse
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.audit import shared
from voxscale.config import config, config_hash, from_dict, load_json, parse, require, to_dict
from voxscale.contract import InputContract, foreground_threshold
from voxscale.errors import DataError
from voxscale.files import locked, sha256_file, write_json
from voxscale.patches import Plan
from voxscale.progress import Progress
from voxscale.shards import Brick, BrickInfo, Manifest, ManifestShard, ShardIndex, Strides, index_path, write_shard
from voxscale.store import Entry, Store, open_store

log = logging.getLogger("voxscale")

Box = tuple[slice, slice, slice]


@config
class PackConfig:
    """How scans are cut into bricks and bricks gathered in tars.

    Attributes:
        factor: Edge of a brick over the edge of a patch, both in mm; room for zooming and for several places.
        overlap: Share of a brick's edge that it shares with its neighbour.
        foreground: Least share of body in a brick; emptier ones are counted and left out.
        shard_mb: Size at which a tar is closed, in 10^6 bytes.
    """

    factor: float = 2.0
    overlap: float = 0.25
    foreground: float = 0.05
    shard_mb: int = 512

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.factor >= 1, "pack.factor", "at least 1", self.factor)
        require(0 <= self.overlap < 1, "pack.overlap", "in [0, 1)", self.overlap)
        require(0 <= self.foreground <= 1, "pack.foreground", "in [0, 1]", self.foreground)
        require(self.shard_mb >= 1, "pack.shard_mb", "at least 1", self.shard_mb)


def tile(length: int, edge: int, overlap: float) -> list[int]:
    """Starts of equally spaced tiles of one edge that cover a length, at least `overlap` shared by neighbours."""
    if edge >= length:
        return [0]
    count = math.ceil((length - edge) / max(edge * (1 - overlap), 1)) + 1
    return [round(i * (length - edge) / (count - 1)) for i in range(count)]


def brick_boxes(entry: Entry, patch: Sequence[int], contract: InputContract, config: PackConfig) -> list[Box]:
    """Boxes of one scan's bricks, inside its body's bounding box."""
    axes: list[list[slice]] = []
    for axis in range(3):
        low, high = entry.foreground_box[axis]
        wanted = patch[axis] * contract.spacing[axis] / entry.spacing[axis] * config.factor
        edge = min(math.ceil(wanted), entry.shape[axis])
        # A body smaller than a brick is shown with what surrounds it.
        if high - low < edge:
            low = min(max(0, (low + high - edge) // 2), entry.shape[axis] - edge)
            high = low + edge
        axes.append([slice(low + s, low + s + edge) for s in tile(high - low, edge, config.overlap)])
    return [(z, y, x) for z in axes[0] for y in axes[1] for x in axes[2]]


def groups(store: Store, patch: Sequence[int], contract: InputContract, config: PackConfig) -> list[list[str]]:
    """Volumes of each tar: in order of their ids, closed at the size limit, before any voxel is read."""
    out: list[list[str]] = [[]]
    size = 0.0
    for volume in sorted(store.entries):
        entry = store.entries[volume]
        boxes = brick_boxes(entry, patch, contract, config)
        more = sum(math.prod(s.stop - s.start for s in box) for box in boxes) * np.dtype(entry.dtype).itemsize
        if out[-1] and size + more > config.shard_mb * 1e6:
            out.append([])
            size = 0.0
        out[-1].append(volume)
        size += more
    return out


class Cutter:
    """Cuts the bricks of some volumes and counts those left out as air."""

    def __init__(self, store: Store, patch: Sequence[int], contract: InputContract, config: PackConfig) -> None:
        self.store, self.patch, self.contract, self.config = store, patch, contract, config
        self.skipped = 0

    def bricks(self, volumes: Sequence[str]) -> Iterator[Brick]:
        """Yield every brick that shows some body, with the mask of blanked voxels if it has some."""
        for volume in volumes:
            entry = self.store.entries[volume]
            boxes = brick_boxes(entry, self.patch, self.contract, self.config)
            occupied = [box for box in boxes if entry.occupancy is None or entry.occupancy.most(box) > 0]
            self.skipped += len(boxes) - len(occupied)
            if not occupied:
                continue  # nothing but air, as the index knows without a look
            whole, removed = self.store.read(volume), self.store.read_removed(volume)
            limit = foreground_threshold(entry.modality, entry.percentiles)
            for box in occupied:
                voxels = np.ascontiguousarray(whole[box])
                if float((voxels * entry.slope + entry.intercept > limit).mean()) < self.config.foreground:
                    self.skipped += 1
                    continue
                blank = removed[box] if removed is not None and removed[box].any() else None
                yield describe(volume, entry, box), voxels, blank


def describe(volume: str, entry: Entry, box: Box) -> BrickInfo:
    """Geometry and provenance of one brick."""
    start = [s.start for s in box]
    affine = np.asarray(entry.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ start
    return BrickInfo(
        volume=volume,
        subject=entry.subject,
        start=(start[0], start[1], start[2]),
        shape=tuple(s.stop - s.start for s in box),
        dtype=entry.dtype,
        spacing=entry.spacing,
        affine=tuple(tuple(row) for row in affine.tolist()),
        modality=entry.modality,
        slope=entry.slope,
        intercept=entry.intercept,
        percentiles=dict(entry.percentiles),
    )


def _fingerprint(entry: Entry) -> str:
    """Equal for the same scan in two stores: its grid and its values' percentiles, not the keyed ids."""
    return config_hash([list(entry.shape), entry.affine, dict(entry.percentiles)])


def pack(
    store_path: Path,
    folder: Path,
    contract: InputContract,
    patch: tuple[int, int, int],
    strides: Strides,
    config: PackConfig,
    exclude: Path | None = None,
) -> Manifest:
    """Write all shards that are not there yet, then the manifest.

    Args:
        store_path: A store.
        folder: Where the shards go.
        contract: Input contract of the training to come.
        patch: Patch size (z, y, x) of the training to come, in voxels of the contract's spacing.
        strides: (z, y, x) stride of each downsampling step that this patch allows; handed on.
        config: How to cut.
        exclude: Store of a task: scans that are also in it are left out, as they would be tested on.

    Raises:
        DataError: If the store has no accepted volume, or no brick shows any body.
    """
    store, in_task = _chosen(open_store(store_path), exclude)
    made_from = config_hash({"pack": to_dict(config), "contract": to_dict(contract), "patch": list(patch)})
    indexes: list[ShardIndex] = []
    with locked(folder):
        with Progress("pack", len(store.entries), unit="scans") as bar:
            for number, volumes in enumerate(groups(store, patch, contract, config)):
                indexes.append(_shard(folder, f"shard-{number:05d}.tar", store, volumes, contract, patch, config))
                bar.advance(len(volumes))
        samples = [sample for index in indexes for sample in index.samples]
        if not samples:
            least = config.foreground
            raise DataError(f"pack.foreground must be lower than {least}: no brick shows that much body", "only_air")
        manifest = Manifest(
            contract=contract,
            patch=patch,
            strides=strides,
            config_hash=made_from,
            samples=len(samples),
            volumes=len({sample.volume for sample in samples}),
            skipped_air=sum(index.skipped_air for index in indexes),
            in_task=in_task,
            shards=tuple(_line(folder, index) for index in indexes),
        )
        write_json(folder / "manifest.json", to_dict(manifest))
    return manifest


def _chosen(store: Store, exclude: Path | None) -> tuple[Store, int]:
    """The store without the scans of a task, and how many those are."""
    if not store.entries:
        raise DataError("store must hold at least one accepted volume; see its ledger.jsonl", "empty_store")
    unchecked = sum(not entry.privacy.passed for entry in store.entries.values())
    if unchecked:
        raise DataError(
            f"store must have passed the privacy gate; {unchecked} of its scans have not: ingest with privacy.gate on",
            "not_checked",
        )
    planar = {key for key, e in store.entries.items() if e.planar}
    if planar:
        log.warning("pack: %d 2D images are left out; bricks are cut from volumes", len(planar))
    tested = set() if exclude is None else {_fingerprint(e) for e in open_store(exclude).entries.values()}
    twins = set() if exclude is None else {twin.a for twin in shared(store.path, exclude)}
    out = planar | twins | {key for key, e in store.entries.items() if _fingerprint(e) in tested}
    chosen = {key: e for key, e in store.entries.items() if key not in out}
    if len(planar) == len(store.entries):
        raise DataError("store must hold at least one volume; bricks are not cut from 2D images", "only_planar")
    if not chosen:
        raise DataError("store must hold scans that are not in the task as well; add unlabelled scans", "all_in_task")
    in_task = len(out - planar)
    if in_task:
        log.warning("pack: %d scans are left out because they are in the task as well", in_task)
    return replace(store, entries=chosen), in_task


def _line(folder: Path, index: ShardIndex) -> ManifestShard:
    return ManifestShard(
        name=index.name,
        bytes=index.bytes,
        sha256=index.sha256,
        index_sha256=sha256_file(index_path(folder, index.name)),
        samples=len(index.samples),
    )


def _shard(
    folder: Path,
    name: str,
    store: Store,
    volumes: Sequence[str],
    contract: InputContract,
    patch: tuple[int, int, int],
    config: PackConfig,
) -> ShardIndex:
    """One tar: the one that is there if it was made from the same volumes and config, else a new one."""
    described = [store.entries[v] for v in volumes]
    inputs = config_hash(
        {
            "volumes": list(volumes),
            "entries": [to_dict(e) for e in described],
            "config": [to_dict(config), to_dict(contract), list(patch)],
        }
    )
    path = index_path(folder, name)
    if path.is_file() and (folder / name).is_file():
        index = from_dict(ShardIndex, json.loads(path.read_text()), name)
        if index.inputs == inputs and (folder / name).stat().st_size == index.bytes:
            return index
    path.unlink(missing_ok=True)
    cutter = Cutter(store, patch, contract, config)
    return write_shard(folder, name, cutter.bricks(volumes), inputs, lambda: cutter.skipped)


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep pack`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_prep pack", add_help=False)
    parser.add_argument("store", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--exclude", type=Path)
    known, rest = parser.parse_known_args(args)
    options = parse(PackConfig, None, rest, "python -m data_prep pack STORE SHARDS --plan PLAN.json")
    plan = load_json(Plan, known.plan)
    manifest = pack(known.store, known.shards, plan.contract, plan.patch, plan.strides, options, known.exclude)
    summary = {"samples": manifest.samples, "volumes": manifest.volumes, "skipped_air": manifest.skipped_air}
    summary |= {"in_task": manifest.in_task}
    print(json.dumps(summary | {"shards": len(manifest.shards)}))
    return 0
