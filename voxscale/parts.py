"""A whole and its parts: equal boxes that tile it, slots in the order z, y, x with x fastest."""

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from voxscale.config import require

Splits = tuple[int, int, int]
"""Parts along z, y, x."""


def legal_splits(
    size: Sequence[int], spacing: Sequence[float], parts: int, legal: Callable[[tuple[int, int, int]], bool]
) -> Splits | None:
    """Halve the longest axes in mm, each once at most, of those whose halves are images that a network takes.

    Args:
        size: Voxels of the whole along z, y, x; an axis of one voxel is not split.
        spacing: mm along z, y, x.
        parts: How many: 2, 4 or 8.
        legal: Whether the network takes an image of so many voxels.

    Returns:
        Parts along z, y, x; None if so many cannot be made. A slab of 60 x 300 x 300 mm has (1, 2, 2) if it is to
        have 4 and all is legal. The first of equal axes goes first.
    """
    able = [axis for axis in range(3) if size[axis] > 1 and size[axis] % 2 == 0]
    able.sort(key=lambda axis: -size[axis] * spacing[axis])
    for halved in itertools.combinations(able, {2: 1, 4: 2, 8: 3}[parts]):
        z, y, x = (2 if axis in halved else 1 for axis in range(3))
        if legal(part_size(size, (z, y, x))):
            return z, y, x
    return None


def part_size(size: Sequence[int], splits: Splits) -> tuple[int, int, int]:
    """Voxels of a part along z, y, x.

    Raises:
        ConfigError: If the parts do not tile the whole.
    """
    whole = all(p >= 1 and n % p == 0 for n, p in zip(size, splits, strict=True))
    require(whole, "splits", f"divisors of the whole, {tuple(size)}", splits)
    z, y, x = (n // p for n, p in zip(size, splits, strict=True))
    return z, y, x


def split(whole: Shaped[Tensor, "b c z y x"], splits: Splits) -> Shaped[Tensor, "b p c _ _ _"]:
    """Cut each whole into its parts; not a voxel is lost, shown twice or resampled.

    Raises:
        ConfigError: If the parts do not tile the whole.
    """
    b, c, *size = whole.shape
    (z, y, x), (sz, sy, sx) = part_size(size, splits), splits
    cells = whole.reshape(b, c, sz, z, sy, y, sx, x).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return cells.reshape(b, sz * sy * sx, c, z, y, x)


def join(parts: Shaped[Tensor, "b p c z y x"], splits: Splits) -> Shaped[Tensor, "b c _ _ _"]:
    """Put parts together again: the inverse of `split`."""
    b, _, c, z, y, x = parts.shape
    sz, sy, sx = splits
    cells = parts.reshape(b, sz, sy, sx, c, z, y, x).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return cells.reshape(b, c, sz * z, sy * y, sx * x)


def slot_means(features: Float[Tensor, "b c z y x"], splits: Splits) -> Float[Tensor, "b p c"]:
    """Mean of the features in each slot; a grid of cells that the slots do not divide is shared out by area.

    Cells on the border of two slots count for both in proportion, as in area interpolation.
    """
    averages = [_shares(n, p).to(features) for n, p in zip(features.shape[2:], splits, strict=True)]
    return torch.einsum("bczyx,iz,jy,kx->bijkc", features, *averages).flatten(1, 3)


def _shares(cells: int, slots: int) -> Float[Tensor, "slots cells"]:
    """Share of each cell in the mean of each slot."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    low = (torch.arange(slots, dtype=torch.float64) * cells / slots)[:, None]
    overlap = (torch.minimum(edges[1:], low + cells / slots) - torch.maximum(edges[:-1], low)).clamp(min=0)
    return overlap / overlap.sum(dim=1, keepdim=True)


def mirrored_slots(splits: Splits, flips: Sequence[bool]) -> list[int]:
    """The slot of the unmirrored whole that each slot of the mirrored one shows.

    `split(mirrored whole)[k]` is the mirrored `split(whole)[mirrored_slots(...)[k]]`. Mirroring
    twice changes nothing, so the same order also leads back.

    Args:
        splits: Parts along z, y, x.
        flips: Whether z, y, x are mirrored.
    """
    places = itertools.product(*[range(n) for n in splits])
    turned = [[n - 1 - k if f else k for k, n, f in zip(place, splits, flips, strict=True)] for place in places]
    return [(k[0] * splits[1] + k[1]) * splits[2] + k[2] for k in turned]
