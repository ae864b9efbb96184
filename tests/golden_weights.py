"""Weights by a formula, so that golden files need to hold outputs only."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def made_weights(shapes: Mapping[str, Sequence[int]], index: Tensor) -> dict[str, Tensor]:
    """A tensor for each name: scales about 1, variances positive, everything else about 0.

    Args:
        shapes: By name.
        index: What every `relative_position_index` holds.
    """
    return {name: _made(name, tuple(shape), index) for name, shape in shapes.items()}


def _made(name: str, shape: tuple[int, ...], index: Tensor) -> Tensor:
    if name.endswith("relative_position_index"):
        return index.clone()
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    start = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16)
    count = torch.Size(shape).numel()
    wave = torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + start).reshape(shape).float()
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 1 + 0.3 * wave
    return 0.1 * wave


def made_input(size: Sequence[int]) -> Tensor:
    """An image with as many different values as voxels."""
    count = torch.Size(size).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.3).reshape(tuple(size)).float()
