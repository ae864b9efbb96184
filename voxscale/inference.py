"""Sliding-window inference on images larger than the network's patch."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from voxscale.config import require
from voxscale.errors import DataError

Window = tuple[slice, slice, slice]

FLOOR = 1e-3
"""Least weight of a voxel, so that one that only patch corners reach still averages all of them."""


def gaussian_weights(patch: tuple[int, int, int]) -> Float[Tensor, "z y x"]:
    """Importance of each voxel of a patch: 1 in the centre, a Gaussian of sigma patch / 8 around it.

    Voxels near a patch's border see less context, so their votes count less
    (Isensee et al. 2021, nnU-Net). No weight is below `FLOOR`.

    Args:
        patch: (z, y, x) in voxels.
    """
    axes: list[Tensor] = []
    for size in patch:
        offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        axes.append(torch.exp(-0.5 * (offset / (size / 8)) ** 2))
    z, y, x = axes
    return (z[:, None, None] * y[:, None] * x).clamp(min=FLOOR)


def windows(size: Sequence[int], patch: Sequence[int], overlap: float) -> list[Window]:
    """Boxes of one patch each that cover an image; the last along an axis ends with the image.

    Args:
        size: (z, y, x) of the image in voxels, nowhere less than the patch.
        patch: (z, y, x) in voxels.
        overlap: Share of the patch that neighbours have in common at least, from 0 to below 1.
    """
    axes: list[list[slice]] = []
    for length, width in zip(size, patch, strict=True):
        step = max(int(width * (1 - overlap)), 1)
        steps = math.ceil((length - width) / step)
        starts = [min(i * step, length - width) for i in range(steps + 1)]
        axes.append([slice(start, start + width) for start in starts])
    return [(z, y, x) for z, y, x in itertools.product(*axes)]


@torch.no_grad()
def sliding_window(
    predict: Callable[[Tensor], Tensor],
    image: Float[Tensor, "1 c z y x"],
    patch: tuple[int, int, int],
    overlap: float = 0.5,
    batch: int = 2,
) -> Float[Tensor, "1 k z y x"]:
    """Class probabilities of a whole image, averaged over overlapping patches.

    Memory: the result is float32 on the device of `image` and takes 4 k bytes per
    voxel, with 4 more for the summed weights; 105 classes on 230^3 voxels are
    5.2 GB. To spare the accelerator, keep the image on the CPU and let `predict`
    move each patch.

    Args:
        predict: Maps patches (b, c, z, y, x) to logits (b, k, z, y, x), such as `lambda x: model(x)[0]`.
        image: Network input; padded with zeros on both sides where it is smaller than the patch.
        patch: (z, y, x) of a patch in voxels.
        overlap: Share of a patch that neighbours have in common, from 0 to below 1.
        batch: Patches per call of `predict`.

    Returns:
        Probabilities, which sum to 1 over the classes of each voxel.

    Raises:
        ConfigError: If patch, overlap or batch is out of range.
        DataError: If the image is not one image, or `predict` gives another grid.
    """
    require(len(patch) == 3 and min(patch) >= 1, "inference.patch", "three sizes of at least 1 voxel", patch)
    require(0 <= overlap < 1, "inference.overlap", "0 to below 1", overlap)
    require(batch >= 1, "inference.batch", "at least 1", batch)
    if image.ndim != 5 or len(image) != 1:
        raise DataError(f"image must have shape (1, c, z, y, x), not {tuple(image.shape)}", "not_3d")
    padded, inner = _pad(image, patch)
    weights = gaussian_weights(patch).to(image.device)
    weight_sum = torch.zeros(padded.shape[2:], device=image.device)
    total: Tensor | None = None
    boxes = windows(padded.shape[2:], patch, overlap)
    for first in range(0, len(boxes), batch):
        chunk = boxes[first : first + batch]
        logits = predict(torch.cat([padded[:, :, z, y, x] for z, y, x in chunk]))
        if logits.ndim != 5 or len(logits) != len(chunk) or logits.shape[2:] != patch:
            want = (len(chunk), "k", *patch)
            raise DataError(f"predict must return logits of shape {want}, not {tuple(logits.shape)}", "grid")
        votes = logits.float().softmax(dim=1).to(image.device)
        if total is None:
            total = torch.zeros(votes.shape[1], *padded.shape[2:], device=image.device)
        for vote, (z, y, x) in zip(votes, chunk, strict=True):
            total[:, z, y, x].addcmul_(vote, weights)
            weight_sum[z, y, x] += weights
    assert total is not None, "an image has at least one window"
    return total.div_(weight_sum)[(None, slice(None), *inner)]


def _pad(image: Float[Tensor, "1 c z y x"], patch: Sequence[int]) -> tuple[Tensor, Window]:
    """Pad to at least one patch with zeros; also returns where the image lies in the result."""
    missing = [max(width - length, 0) for width, length in zip(patch, image.shape[2:], strict=True)]
    before = [gap // 2 for gap in missing]
    last_axis_first = [n for gap, start in zip(missing[::-1], before[::-1], strict=True) for n in (start, gap - start)]
    z, y, x = (slice(start, start + length) for start, length in zip(before, image.shape[2:], strict=True))
    return F.pad(image, last_axis_first), (z, y, x)
