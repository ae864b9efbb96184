"""Segmentation of whole scans: to the network's grid, sliding window, back to the scan's own grid."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from finetune.config import InferenceConfig
from voxscale.augment.resample import resample
from voxscale.augment.spatial import Spatial, matrix
from voxscale.batch import Batch
from voxscale.contract import InputContract
from voxscale.inference import sliding_window
from voxscale.store import Store
from voxscale.stream.crop import intensity_scale
from voxscale.volume import Triple

Size = tuple[int, int, int]
Predict = Callable[[Float[Tensor, "b 1 z y x"]], Float[Tensor, "b k z y x"]]


def _whole(
    voxels: Tensor, size: Size, spacing: Triple, out: Size, target: Triple, scale: tuple[float, float]
) -> Float[Tensor, "b 1 z y x"]:
    """Resample whole grids onto grids of another spacing with the same centre."""
    z, y, x = ((n - 1) / 2 for n in size)
    mapping = torch.from_numpy(matrix(Spatial(), out, target, spacing, (z, y, x))).float()
    count = len(voxels)
    batch = Batch(
        voxels=voxels,
        label=None,
        sizes=torch.tensor([size] * count, dtype=torch.float32),
        matrix=mapping.expand(count, 3, 4),
        scale=torch.tensor([scale] * count, dtype=torch.float32),
        seeds=(0,) * count,
        indices=(0,) * count,
    )
    return resample(batch.to(voxels.device), out)[0]


def segment(
    predict: Predict,
    store: Store,
    case: str,
    contract: InputContract,
    patch: Size,
    config: InferenceConfig,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Label every voxel of a stored scan.

    Class probabilities are resampled back one class at a time, so that memory
    is that of the probabilities on the network's grid plus two scans.

    Args:
        predict: Class logits of a batch of windows.
        store: Where the scan is.
        case: Anonymous id of the scan.
        contract: The network's input contract.
        patch: Window (z, y, x).
        config: Overlap and batch of windows.
        device: Where to compute.

    Returns:
        (z, y, x) labels on the scan's own grid.
    """
    entry = store.entries[case]
    size, spacing, target = entry.shape, entry.spacing, contract.spacing
    raw = store.read(case)
    stored = torch.from_numpy(raw.astype(np.int32) if raw.dtype == np.uint16 else raw)[None, None].to(device)
    scale = intensity_scale(entry, contract)
    out = _network_size(size, spacing, target)
    image = _whole(stored, size, spacing, out, target, scale)
    probabilities = sliding_window(predict, image, patch, config.overlap, config.batch)
    best = torch.full((1, 1, *size), -1.0, device=device)
    labels = torch.zeros(1, 1, *size, dtype=torch.uint8, device=device)
    for label in range(probabilities.shape[1]):
        back = _whole(probabilities[:, label : label + 1], out, target, size, spacing, (1.0, 0.0))
        labels = torch.where(back > best, label, labels).to(torch.uint8)
        best = torch.maximum(back, best)
    return labels[0, 0].cpu().numpy()


def _network_size(size: Sequence[int], spacing: Triple, target: Triple) -> Size:
    z, y, x = (max(1, round(n * s / t)) for n, s, t in zip(size, spacing, target, strict=True))
    return z, y, x
