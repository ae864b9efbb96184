"""Pack a store into shards: `python -m data_prep pack STORE SHARDS --plan PLAN.json [--part K/N]`."""

import argparse
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_prep.bricks import PackConfig, brick_boxes, describe, describe_level, occupied
from data_prep.choose import Digests, choose
from data_prep.groups import Candidate, Group, plan_groups, read_groups, write_groups
from data_prep.part import Part, parse_part
from data_prep.shard_folder import check_own, clear, held, scratch_for, tar_name
from voxscale.config import config_hash, load_json, parse, to_dict
from voxscale.contract import InputContract
from voxscale.entry import Entry, group_of
from voxscale.errors import DataError
from voxscale.folder import Folder, open_folder
from voxscale.patches import Plan
from voxscale.progress import Progress
from voxscale.pyramid import levels
from voxscale.remote import RemoteFolder
from voxscale.shards import (
    SCHEMA,
    Manifest,
    ManifestShard,
    ShardIndex,
    Strides,
    check_index,
    count_groups,
    index_name,
    manifest_text,
    open_manifest,
    parse_index,
    written,
)
from voxscale.store import MEND, Store, open_store
from voxscale.tars import Cut, write_shard

log = logging.getLogger("voxscale")


def pack(
    store_path: Path,
    path: Path,
    contract: InputContract,
    patch: tuple[int, int, int],
    strides: Strides,
    config: PackConfig,
    exclude: Path | None = None,
    part: Part | None = None,
) -> Manifest | None:
    """Write all shards that are not there yet, then the manifest.

    Args:
        store_path: A store, or its URL.
        path: Where the shards go, a folder or a URL.
        contract: Input contract of the training to come.
        patch: Patch size (z, y, x) of the training to come, in voxels of the contract's spacing.
        strides: (z, y, x) stride of each downsampling step that this patch allows; handed on.
        config: How to cut.
        exclude: Store of a task: scans that are also in it are left out, as they would be tested on.
        part: Which worker of how many this is; a worker writes its own tars and no manifest.

    Returns:
        The manifest; None for a worker.

    Raises:
        DataError: If the store has no accepted volume, or no brick shows any body.
    """
    job = _Pack(open_store(store_path), path, contract, patch, config)
    candidates, in_task = choose(job.store, patch, contract, config, exclude)
    with held(path, part), scratch_for(path) as scratch:
        if isinstance(job.folder, RemoteFolder):
            job.folder.clear_uploads()
        groups = job.plan(candidates)
        del candidates
        mine = [number for number in range(len(groups)) if part is None or part.owns(number)]
        total = job.shards(groups, mine, scratch, told=part is None)
        if part is not None:
            return None
        manifest = job.manifest(total, strides, in_task)
        job.folder.write("manifest.json", manifest_text(manifest))
        clear(job.folder, len(groups))
    return manifest


class _Pack:
    """One packing of one store."""

    def __init__(
        self, store: Store, path: Path, contract: InputContract, patch: tuple[int, int, int], config: PackConfig
    ) -> None:
        self.store, self.path, self.folder = store, path, open_folder(path)
        self.contract, self.patch, self.config = contract, patch, config
        self.made_from = config_hash({"pack": written(config), "contract": to_dict(contract), "patch": list(patch)})

    def plan(self, candidates: Sequence[Candidate]) -> tuple[Group, ...]:
        """The scans of each tar, those of an earlier run first."""
        check_own(self.folder)
        before = read_groups(self.folder, self.made_from)
        groups = plan_groups(before, candidates, self.config.shard_mb * 1e6, self.config.holdout)
        if groups != before:
            write_groups(self.folder, self.made_from, groups)
        return groups

    def shards(self, groups: Sequence[Group], mine: Sequence[int], scratch: Path, told: bool) -> "_Total":
        """The tars of these numbers; what the manifest needs of them is counted where it shall be `told`."""
        digests = Digests(self.store, [key for number in mine for key in groups[number].volumes])
        total = _Total()
        with Progress("pack", sum(len(groups[number].volumes) for number in mine), unit="scans") as bar:
            for number in mine:
                if groups[number].volumes:
                    index = self.shard(number, groups[number], digests, scratch)
                    if told:
                        total.add(groups[number], index, self.folder)
                    bar.advance(len(groups[number].volumes))
        return total

    def shard(self, number: int, group: Group, digests: Digests, scratch: Path) -> ShardIndex:
        """One tar: the one that is there if it was made from the same scans and config, else a new one."""
        name = tar_name(number)
        inputs = config_hash({"scans": digests.of(group.volumes), "config": self.made_from, "schema": SCHEMA})
        known = self._known(name)
        same = known is not None and known.inputs == inputs and self.folder.size(name) == known.bytes
        if known is not None and same and not any(self._readable(key) for key in known.lost):
            return known
        self.folder.remove(index_name(name))
        skipped, lost = [0], dict[str, str]()
        entries = {key: self.store.entries[key] for key in group.volumes}
        return write_shard(
            self.folder, name, self._cut(entries, skipped, lost), inputs, lambda: (skipped[0], lost), scratch
        )

    def _known(self, name: str) -> ShardIndex | None:
        """The index of a tar that an earlier run wrote; one without a checksum only if the manifest vouches for it."""
        try:
            text = self.folder.read(index_name(name))
            found, checked = parse_index(text, name)
            check_index(found, name, found.bytes)
        except (OSError, DataError):
            return None
        return found if checked or hashlib.sha256(text).hexdigest() == self._vouched.get(name) else None

    @cached_property
    def _vouched(self) -> dict[str, str]:
        """SHA-256 of the indexes that the manifest names, if there is one."""
        try:
            manifest = open_manifest(self.path)
        except DataError:
            return {}
        return {line.name: line.index_sha256 for line in manifest.shards}

    def _cut(self, entries: dict[str, Entry], skipped: list[int], lost: dict[str, str]) -> Iterator[Cut]:
        """Every brick that shows enough body; counts the others, and scans that cannot be read."""
        for key, entry in entries.items():
            boxes = brick_boxes(entry, self.patch, self.contract, self.config)
            chosen = occupied(entry, boxes, self.config.foreground)
            skipped[0] += len(boxes) - len(chosen)
            group = group_of(entry.dataset, entry.modality, entry.technique.get("body_part"))
            try:
                yield from self._coarser(key, entry, group, some=bool(chosen))
                for box in chosen:
                    layout, voxels, mask = self.store.cut(key, box)
                    info = describe(key, entry, box, layout.chunk, self.made_from, coarse=self.config.levels > 1)
                    yield info, group, voxels, mask
            except DataError as error:
                lost[key] = error.reason
                log.warning("pack: scan %s is left out (%s); %s", key, error.reason, MEND)

    def _readable(self, key: str) -> bool:
        """Whether a scan that was lost once can be cut now: it may have been ingested again."""
        lost: dict[str, str] = {}
        for _ in self._cut({key: self.store.entries[key]}, [0], lost):
            pass
        return not lost

    def _coarser(self, key: str, entry: Entry, group: str, some: bool) -> list[Cut]:
        """Coarser levels of a scan that has some bricks, as many as are asked for and as it has; small beside it."""
        found = list(enumerate(levels(entry.shape, entry.spacing)))[1 : self.config.levels] if some else []
        made: list[Cut] = []
        for number, level in found:
            layout, voxels, mask = self.store.cut(key, [(0, n) for n in level.shape], number)
            info = describe_level(key, entry, number, level, layout.chunk, self.made_from)
            made.append((info, group, voxels, mask))
        return made

    def manifest(self, total: "_Total", strides: Strides, in_task: int) -> Manifest:
        """What all tars hold together."""
        if not total.samples:
            least = self.config.foreground
            raise DataError(f"pack.foreground must be lower than {least}: no brick shows that much body", "only_air")
        return Manifest(
            schema_version=SCHEMA,
            contract=self.contract,
            patch=self.patch,
            strides=strides,
            config_hash=self.made_from,
            samples=total.samples,
            volumes=total.volumes,
            subjects={split: len(found) for split, found in sorted(total.people.items())},
            skipped_air=total.skipped_air,
            in_task=in_task,
            lost=total.lost,
            shards=tuple(total.shards),
            levels=self.config.levels,
        )


@dataclass(slots=True)
class _Total:
    """What the manifest needs of the tars so far; a tar's own index is not kept."""

    samples: int = 0
    volumes: int = 0
    people: dict[str, set[bytes]] = field(default_factory=lambda: dict[str, set[bytes]]())
    skipped_air: int = 0
    lost: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    shards: list[ManifestShard] = field(default_factory=lambda: list[ManifestShard]())

    def add(self, group: Group, index: ShardIndex, folder: Folder) -> None:
        """Count one more tar; no scan is in two."""
        self.samples += len(index.samples)
        self.volumes += len({sample.volume for sample in index.samples})
        hashes = (hashlib.sha256(sample.subject.encode()).digest()[:12] for sample in index.samples)
        self.people.setdefault(group.split, set()).update(hashes)
        self.skipped_air += index.skipped_air
        self.lost |= index.lost
        if not index.samples:
            return
        line = ManifestShard(
            name=index.name,
            bytes=index.bytes,
            sha256=index.sha256,
            index_sha256=hashlib.sha256(folder.read(index_name(index.name))).hexdigest(),
            samples=len(index.samples),
            groups=dict(count_groups(index.samples)),
            split=group.split,
        )
        self.shards.append(line)


def read_arguments(args: Sequence[str]) -> tuple[argparse.Namespace, PackConfig]:
    """The command line: `store`, `shards`, `plan`, `exclude` and `part`, then how to cut; a wrong one exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m data_prep pack", add_help=False)
    parser.add_argument("store", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--part")
    known, rest = parser.parse_known_args(args)
    return known, parse(PackConfig, None, rest, "python -m data_prep pack STORE SHARDS --plan PLAN.json")


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep pack`; returns the exit status."""
    known, options = read_arguments(args)
    plan = load_json(Plan, known.plan)
    part = None if known.part is None else parse_part(known.part)
    manifest = pack(known.store, known.shards, plan.contract, plan.patch, plan.strides, options, known.exclude, part)
    if manifest is None:
        return 0
    summary = {"samples": manifest.samples, "volumes": manifest.volumes, "skipped_air": manifest.skipped_air}
    summary |= {"in_task": manifest.in_task, "lost": len(manifest.lost)}
    print(json.dumps(summary | {"shards": len(manifest.shards)}))
    return 0
