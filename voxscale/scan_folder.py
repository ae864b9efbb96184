"""Writing one scan of a store: an OME-Zarr image with its levels, its labels and what is known of it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.arrays import chunk_bytes, write_array
from voxscale.entry import Entry
from voxscale.files import commit_folder, indented, json_crc, temporary
from voxscale.kernel.filters import count_values
from voxscale.ome import image_label, multiscales
from voxscale.pyramid import Level, levels, shrink, shrink_label, shrink_mask
from voxscale.volume import LabelMap, Volume

LOCATIONS = 1000
"""Voxels of each class whose places are kept."""


def write_volume(
    store: Path,
    key: str,
    volume: Volume,
    label: LabelMap | None,
    entry: Entry,
    classes: Mapping[int, str],
    removed: NDArray[np.bool_] | None = None,
    beside_it: Mapping[str, bytes] | None = None,
    scratch: Path | None = None,
) -> Entry:
    """Write one scan so that it appears whole or not at all; longer than others for its many arguments.

    Args:
        store: The store's folder.
        key: Id of the scan.
        volume: The scan.
        label: Its label on the same grid.
        entry: What is known of it.
        classes: Names of the label values.
        removed: (z, y, x), true where voxels were blanked; kept as a label of its own.
        beside_it: Further small files of the scan's folder, by name.
        scratch: Folder of the same file system for the unfinished scan; None takes the store's own.

    Returns:
        The entry with `bytes` filled in.
    """
    beside = temporary(store / key, scratch)
    shutil.rmtree(beside, ignore_errors=True)
    _write_levels(beside, volume.voxels, volume, shrink)
    if label is not None:
        _write_label(beside, "task", label, volume, classes, shrink_label)
    if removed is not None:
        mask = LabelMap(removed.astype(np.uint8, order="C"), volume.affine)
        _write_label(beside, "removed", mask, volume, {1: "removed"}, shrink_mask)
    present = [name for name, found in (("task", label), ("removed", removed)) if found is not None]
    if present:
        _write_group(beside / "labels", {"ome": {"version": "0.5", "labels": present}})
    entry = replace(entry, bytes=chunk_bytes(beside))
    ome = {"version": "0.5", "multiscales": multiscales(volume, _levels(volume))}
    told = asdict(entry)
    _write_group(beside, {"ome": ome, "voxscale": told, "crc32c": json_crc(told)})
    for name, content in (beside_it or {}).items():
        (beside / name).write_bytes(content)
    commit_folder(beside, store / key)
    return entry


Shrink = Callable[[NDArray[Any], Sequence[int]], NDArray[Any]]


def _levels(volume: Volume) -> tuple[Level, ...]:
    return levels(volume.shape, volume.spacing)


def _write_levels(folder: Path, voxels: NDArray[Any], volume: Volume, shrink_by: Shrink) -> None:
    """Write an array and its coarser levels."""
    factor = (1, 1, 1)
    for number, level in enumerate(_levels(volume)):
        voxels = shrink_by(voxels, [now // before for now, before in zip(level.factor, factor, strict=True)])
        factor = level.factor
        write_array(folder / str(number), voxels)


def _write_label(
    folder: Path, name: str, label: LabelMap, volume: Volume, classes: Mapping[int, str], shrink_by: Shrink
) -> None:
    """Write one label of a scan, with the names of its classes and where they are."""
    _write_levels(folder / "labels" / name, label.voxels, volume, shrink_by)
    scales = multiscales(volume, _levels(volume), label=True)
    ome = {"version": "0.5", "multiscales": scales, "image-label": image_label(label, classes)}
    told = _count(label)
    _write_group(folder / "labels" / name, {"ome": ome, "voxscale": told, "crc32c": json_crc(told)})


def _write_group(folder: Path, attributes: dict[str, Any]) -> None:
    told = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / "zarr.json").write_text(indented(told, 1) + "\n")  # flushed with the whole folder


def _count(label: LabelMap) -> dict[str, Any]:
    """Voxel count of each class and places of up to `LOCATIONS` of its voxels, evenly spread in scan order."""
    known = count_values(label.voxels)
    counts = {str(value): int(known[value]) for value in np.flatnonzero(known).tolist() if value}
    return {"counts": counts, "locations": {value: _spread(label.voxels, int(value), n) for value, n in counts.items()}}


def _spread(voxels: NDArray[np.uint8], value: int, count: int) -> list[list[int]]:
    """Some places of one class; `count` voxels have it. Slice by slice, as their numbers need eight bytes each."""
    chosen = np.linspace(0, count - 1, min(count, LOCATIONS)).round().astype(int)
    out: list[list[int]] = []
    before = 0
    for z, plane in enumerate(voxels):
        there = np.flatnonzero(plane == value)
        wanted = chosen[np.searchsorted(chosen, before) : np.searchsorted(chosen, before + len(there))]
        y, x = np.unravel_index(there[wanted - before], plane.shape)
        out += np.stack([np.full_like(y, z), y, x], axis=1).tolist()
        before += len(there)
    return out
