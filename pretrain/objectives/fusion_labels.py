"""Where Volume Fusion blends two crops and how strongly: cells of a regular grid, or boxes over boxes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from pretrain.objectives.fusion_config import Size, VolumeFusionConfig, check, sides
from voxscale.seed import rng


def sample_labels(
    seeds: Sequence[int], size: Size, config: VolumeFusionConfig, device: torch.device | str = "cpu"
) -> UInt8[Tensor, "b 1 z y x"]:
    """Draw which voxels are blended and how strongly.

    Parameters are drawn on the CPU from each sample's own seed; only painting
    is done on the device.

    Args:
        seeds: Seed of each sample.
        size: Voxels of the patch along z, y, x.
        config: Layout, levels and block sizes.
        device: Where the label is wanted.

    Returns:
        (b, 1, z, y, x) uint8 in 0..K; the blending coefficient is label / K.

    Raises:
        ConfigError: If a block may be larger than the patch, see `check`.
    """
    check(config, size)
    rngs = [rng(seed, "fusion") for seed in seeds]
    paint = _paint_grids if config.layout == "grid" else _paint_boxes
    return paint(rngs, size, config, torch.device(device))


def _paint_grids(
    rngs: Sequence[np.random.Generator], size: Size, config: VolumeFusionConfig, device: torch.device
) -> UInt8[Tensor, "b 1 z y x"]:
    """Paint a random share of the cells of one regular grid per sample, all samples in one gather."""
    table, (z, y, x) = draw_grids(rngs, size, config, device)
    place = z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]
    return table.gather(1, place.flatten(1)).view(-1, 1, *size)


def draw_grids(
    rngs: Sequence[np.random.Generator], size: Size, config: VolumeFusionConfig, device: torch.device
) -> tuple[UInt8[Tensor, "b cells"], tuple[Tensor, Tensor, Tensor]]:
    """Draw the grid of each sample, see `draw_grid`, and bring all to the device."""
    tables, places = zip(*(draw_grid(generator, size, config) for generator in rngs), strict=True)
    longest = max(map(len, tables))
    table = torch.from_numpy(np.stack([np.pad(one, (0, longest - len(one))) for one in tables])).to(device)
    z, y, x = (torch.from_numpy(np.stack(axis)).to(device) for axis in zip(*places, strict=True))
    return table, (z, y, x)


def draw_grid(
    generator: np.random.Generator, size: Size, config: VolumeFusionConfig
) -> tuple[NDArray[np.uint8], list[NDArray[np.int64]]]:
    """Draw one grid: the class of each cell, and per axis what each voxel adds to its cell's number.

    The grid has one more cell per axis than fits, of class 0, for the margin
    before and after the whole cells.
    """
    shape = np.array(size)
    side = generator.integers(sides(config.block_min), sides(config.block_max), endpoint=True)
    count = shape // side
    offset = generator.integers(0, shape % side, endpoint=True)
    blended = int(config.ratio * count.prod() + 1e-9)  # the addend undoes 0.7 * 90 = 62.999...
    classes = np.zeros(count.prod(), dtype=np.uint8)
    chosen = generator.permutation(len(classes))[:blended]
    classes[chosen] = generator.integers(1, config.levels, size=blended, endpoint=True)
    table = np.zeros(count + 1, dtype=np.uint8)
    table[:-1, :-1, :-1] = classes.reshape(count)
    places: list[NDArray[np.int64]] = []
    for axis, (first, whole, edge) in enumerate(zip(offset.tolist(), count.tolist(), side.tolist(), strict=True)):
        step = math.prod(table.shape[axis + 1 :])
        place = np.full(size[axis], whole * step)  # the margin
        place[first : first + whole * edge] = np.repeat(np.arange(whole) * step, edge)
        places.append(place)
    return table.ravel(), places


def _paint_boxes(
    rngs: Sequence[np.random.Generator], size: Size, config: VolumeFusionConfig, device: torch.device
) -> UInt8[Tensor, "b 1 z y x"]:
    """Paint boxes with centres anywhere in the patch, clipped at its border, later ones over earlier ones."""
    label = torch.zeros(len(rngs), 1, *size, dtype=torch.uint8, device=device)
    least, greatest, shape = np.array(sides(config.block_min)), np.array(sides(config.block_max)), np.array(size)
    for row, generator in enumerate(rngs):
        for _ in range(generator.integers(*config.boxes, endpoint=True)):
            side = generator.integers(least, greatest, endpoint=True)
            start = generator.integers(0, shape) - side // 2
            z, y, x = (slice(max(a, 0), b) for a, b in zip(start.tolist(), (start + side).tolist(), strict=True))
            label[row, 0, z, y, x] = int(generator.integers(1, config.levels, endpoint=True))
    return label
