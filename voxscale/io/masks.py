"""Folders with one mask per class (TotalSegmentator), merged on the grid of their image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from voxscale.errors import DataError
from voxscale.io import load_file
from voxscale.io.storage import Raw
from voxscale.io.structures import LoadedLabel, paint

GRID_TOLERANCE_MM = 0.01


def load_masks(paths: Sequence[Path], image: Raw, values: Mapping[int, int]) -> LoadedLabel:
    """Merge masks; where two overlap the later one has the voxel, and the overlap is counted.

    Args:
        paths: One mask per class.
        image: The image they belong to.
        values: Class of each mask, by its place in `paths` from 1.

    Raises:
        DataError: With reason `label_grid`, `label_values`, or as the mask's reader says.
    """
    shape = image.voxels.shape[-3:]
    label = LoadedLabel(np.zeros(shape, dtype=np.uint8))
    for number, path in enumerate(paths, 1):
        mask = load_file(path).raw
        if mask.voxels.shape != shape or np.abs(mask.affine - image.affine).max() > GRID_TOLERANCE_MM:
            raise DataError("mask must lie on the grid of its image", "label_grid")
        found = mask.values()
        if not np.isin(found, (0.0, 1.0)).all() and not np.isin(found, (0.0, 255.0)).all():
            raise DataError("mask must hold 0 and 1 only", "label_values")
        if number in values:
            paint(label, found > 0, values[number])
    return label
