"""Which scans go into which tar: planned once, kept in `groups.json`, only ever added to.

A tar's scans are fixed before a voxel is read, so any number of workers, killed
at any moment, write the same tars; scans that come later go into new ones.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from voxscale.errors import DataError
from voxscale.folder import Folder
from voxscale.shards import Split

GROUPS = "groups.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scan to pack.

    Attributes:
        key: Its id.
        subject: Keyed hash of its subject.
        size: Bytes that its bricks will take, about.
    """

    key: str
    subject: str
    size: float


@dataclass(frozen=True, slots=True)
class Group:
    """The scans of one tar.

    Attributes:
        split: Whether training may read them.
        volumes: Their ids.
    """

    split: Split
    volumes: tuple[str, ...]


def split_of(subject: str, holdout: float) -> Split:
    """Whether a subject is held out: always the same answer, whoever else is in the store."""
    place = int.from_bytes(hashlib.sha256(f"holdout {subject}".encode()).digest()[:8], "big") / 2**64
    return "holdout" if place < holdout else "train"


def plan_groups(
    before: Sequence[Group], candidates: Iterable[Candidate], limit: float, holdout: float
) -> tuple[Group, ...]:
    """Extend a plan: scans that are gone leave their groups, new ones form new groups in the order of their ids.

    Args:
        before: The plan so far.
        candidates: All scans to pack.
        limit: Bytes at which a group is closed.
        holdout: Share of subjects held out.
    """
    found = sorted(candidates, key=lambda each: each.key)
    there = {each.key for each in found}
    groups = [Group(group.split, tuple(v for v in group.volumes if v in there)) for group in before]
    placed = {volume for group in groups for volume in group.volumes}
    splits: tuple[Split, ...] = ("train", "holdout")
    for split in splits:
        volumes: list[str] = []
        size = 0.0
        for each in found:
            if each.key in placed or split_of(each.subject, holdout) != split:
                continue
            if volumes and size + each.size > limit:
                groups.append(Group(split, tuple(volumes)))
                volumes, size = [], 0.0
            volumes.append(each.key)
            size += each.size
        if volumes:
            groups.append(Group(split, tuple(volumes)))
    return tuple(groups)


def read_groups(folder: Folder, config: str) -> tuple[Group, ...]:
    """The plan so far; empty if there is none or it was made under another config.

    Raises:
        DataError: With reason `corrupt` if it cannot be read.
    """
    if folder.size(GROUPS) is None:
        return ()
    try:
        told = json.loads(folder.read(GROUPS))
        same = told["config"] == config
        groups = tuple(Group(each["split"], tuple(each["volumes"])) for each in told["groups"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{GROUPS} must be as it was written; remove it and pack again", "corrupt") from None
    return groups if same else ()


def write_groups(folder: Folder, config: str, groups: Sequence[Group]) -> None:
    """Keep a plan; workers that do so at the same time write the same bytes."""
    told = {"config": config, "groups": [{"split": g.split, "volumes": list(g.volumes)} for g in groups]}
    folder.write(GROUPS, (json.dumps(told) + "\n").encode())
