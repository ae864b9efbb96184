"""nnU-Net's own way from an int16 CT to a float32 patch: its normalisation, its file format, its chunk heuristics."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ZScoreNormalization
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from numpy.typing import NDArray

PATCH = (128, 128, 128)


Norm = Literal["zscore", "ct", "none"]


def normalise(voxels: NDArray[np.int16], how: Norm) -> NDArray[np.float32]:
    """What its preprocessor makes of an image, (1, z, y, x).

    Args:
        voxels: (z, y, x) HU.
        how: `zscore` as for unlabelled images, of which nothing is known but themselves, and for all but CT;
            `ct` clips to the percentiles of a task's foreground, here of all body, which loses air and bone;
            `none` keeps the whole numbers, which is not its route but compresses best.
    """
    data = voxels.astype(np.float32)[None]
    if how == "none":
        return data
    if how == "zscore":
        return ZScoreNormalization(use_mask_for_norm=False, intensityproperties={}).run(data)
    body = data[data > -600]
    low, high = np.percentile(body, (0.5, 99.5))
    known = {"mean": body.mean(), "std": body.std(), "percentile_00_5": low, "percentile_99_5": high}
    return CTNormalization(use_mask_for_norm=False, intensityproperties=known).run(data)


def save(voxels: NDArray[np.int16], folder: Path, how: Norm) -> int:
    """Write one case as its preprocessor does; returns the bytes of the image file."""
    data = normalise(voxels, how)
    blocks, chunks = comp_blosc2_params(data.shape, PATCH, data.itemsize)
    segmentation = np.zeros(data.shape, np.int8)
    nnUNetDatasetBlosc2.save_case(data, segmentation, {}, str(folder / "case"), chunks=chunks, blocks=blocks)
    return os.path.getsize(folder / "case.b2nd")


def reader(folder: Path) -> Any:
    """A function that reads a patch at a start as its data loader does: opens the case, slices, makes a tensor."""
    cases = nnUNetDatasetBlosc2(str(folder), ["case"])

    def read(start: tuple[int, int, int]) -> torch.Tensor:
        data, *_ = cases.load_case("case")
        box = tuple(slice(a, a + n) for a, n in zip(start, PATCH, strict=True))
        return torch.from_numpy(np.asarray(data[(slice(None), *box)])).float()

    return read
