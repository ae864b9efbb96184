"""Which blocks of an image are hidden from the network."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from voxscale.config import require


def sample(rngs: Sequence[np.random.Generator], grid: tuple[int, int, int], ratio: float) -> Bool[Tensor, "b z y x"]:
    """Draw the visible blocks of each sample, all sets of them alike, equally many in each.

    Args:
        rngs: Generator of each sample.
        grid: Blocks along z, y, x.
        ratio: Share of blocks that are hidden, rounded to whole blocks; one at least is hidden, and one visible.

    Raises:
        ConfigError: If there is one block only.
    """
    count = int(np.prod(grid))
    require(count > 1, "objective.masked_reconstruction.block", "smaller than the patch", grid)
    hidden = hidden_count(grid, ratio)
    visible = np.ones((len(rngs), count), dtype=bool)
    for row, rng in zip(visible, rngs, strict=True):
        row[rng.permutation(count)[:hidden]] = False
    return torch.from_numpy(visible).view(-1, *grid)


def hidden_count(grid: Sequence[int], ratio: float) -> int:
    """How many blocks are hidden."""
    count = int(np.prod(grid))
    return min(max(round(ratio * count), 1), count - 1)
