"""Folders with one mask per class (TotalSegmentator), merged on the grid of their image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from voxscale.errors import DataError
from voxscale.io import load_file
from voxscale.io.storage import Raw
from voxscale.io.structures import GRID_TOLERANCE, TOGETHER, LoadedLabel, empty_note, off_grid, paint
from voxscale.kernel.filters import different


def load_masks(paths: Sequence[Path], image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    """Merge masks; where two overlap the later one has the voxel, and the overlap is counted.

    Args:
        paths: One mask per class.
        image: The image they belong to.
        values: Class of each mask, by its place in `paths` from 1; others are left out.

    Raises:
        DataError: With reason `label_grid`, `label_values` (other values than 0 and 1, or 0 and 255),
            `several_volumes`, or as the mask's reader says.
    """
    label, drawn = LoadedLabel(np.zeros(image.voxels.shape[-3:], dtype=np.uint8)), set[int]()
    for number, path in enumerate(paths, 1):
        if number not in values:
            continue
        loaded = load_file(path)
        mask, shape = loaded.raw, label.voxels.shape
        if loaded.parts != 1:
            raise DataError(f"mask must hold one volume, not {loaded.parts}", "several_volumes")
        if mask.voxels.shape != shape or off_grid(mask.affine, image.affine, shape) > GRID_TOLERANCE:
            raise DataError("mask must lie on the grid of its image", "label_grid")
        levels = set((different(mask.voxels).astype(np.float64) * mask.slope + mask.intercept).tolist())
        if not (levels <= {0.0, 1.0} or levels <= {0.0, 255.0}):
            raise DataError("mask must hold 0 and 1 only", "label_values")
        for start in range(0, shape[0], TOGETHER):
            where = (slice(start, start + TOGETHER),)
            inside = mask.voxels[where] != -mask.intercept / mask.slope
            if inside.any():
                drawn.add(number)
                paint(label, inside, values[number], where)
        del loaded, mask  # before the next one is read
    return LoadedLabel(label.voxels, label.overlaps, empty_note(values, drawn))
