"""What flows from disk to loss: `Patch` -> `Batch` -> `Views` -> `Losses`, each checked once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from voxscale.errors import DataError


@dataclass(frozen=True, slots=True)
class Patch:
    """One box of a scan, in the number type of the store, and how to resample it.

    Attributes:
        voxels: (z, y, x) box as stored.
        label: (z, y, x) uint8 on the same box, if the scan is labelled.
        matrix: 3x4; maps (z, y, x, 1) of the network's patch to voxel indices of the box.
        scale: Network input = `scale[0] * stored + scale[1]`, then clipped to 0..1.
        seed: Seed of every later draw for this sample.
        index: Global sample index.
        volume: Anonymous id of the scan.
        removed: (z, y, x) uint8 on the same box, 1 where the privacy gate blanked a voxel; None if it blanked none.
        mm: 3x4; maps (z, y, x, 1) of the network's patch to mm from the scan's first voxel, along the scan's own axes.
    """

    voxels: NDArray[Any]
    label: NDArray[np.uint8] | None
    matrix: NDArray[np.float64]
    scale: tuple[float, float]
    seed: int
    index: int
    volume: str
    removed: NDArray[np.uint8] | None = None
    mm: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Check shapes; raises `DataError`."""
        if self.voxels.ndim != 3 or 0 in self.voxels.shape:
            raise DataError(f"patch.voxels must be 3D and not empty, not of shape {self.voxels.shape}", "not_3d")
        if self.label is not None and self.label.shape != self.voxels.shape:
            raise DataError(f"patch.label must have shape {self.voxels.shape}, not {self.label.shape}", "label_grid")
        if self.removed is not None and self.removed.shape != self.voxels.shape:
            raise DataError(f"patch.removed must have shape {self.voxels.shape}, not {self.removed.shape}", "bad_mask")
        if self.matrix.shape != (3, 4) or not np.isfinite(self.matrix).all():
            raise DataError(f"patch.matrix must be a finite 3x4 matrix, not of shape {self.matrix.shape}", "bad_affine")
        if self.mm is not None and (self.mm.shape != (3, 4) or not np.isfinite(self.mm).all()):
            raise DataError(f"patch.mm must be a finite 3x4 matrix, not of shape {self.mm.shape}", "bad_affine")


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches stacked for the device; boxes are padded at their far ends to one shape.

    Attributes:
        voxels: (b, 1, z, y, x) in a stored number type.
        label: (b, 1, z, y, x) uint8, or None.
        sizes: (b, 3) true size of each box in voxels.
        matrix: (b, 3, 4), see `Patch.matrix`.
        scale: (b, 2), see `Patch.scale`.
        seeds: Seed of each sample.
        indices: Global index of each sample.
        removed: (b, 1, z, y, x) uint8, 1 where a voxel was blanked, or None if none was in any sample.
        mm: (b, 3, 4), see `Patch.mm`; None if it is not known of all samples.
        scans: Number of each sample's scan among those of this batch, from 0 in the order of their coming; they say
            what was cut from one scan and nothing else of it. Empty if not known.
    """

    voxels: Shaped[Tensor, "b 1 z y x"]
    label: UInt8[Tensor, "b 1 z y x"] | None
    sizes: Float[Tensor, "b 3"]
    matrix: Float[Tensor, "b 3 4"]
    scale: Float[Tensor, "b 2"]
    seeds: tuple[int, ...]
    indices: tuple[int, ...]
    removed: UInt8[Tensor, "b 1 z y x"] | None = None
    mm: Float[Tensor, "b 3 4"] | None = None
    scans: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that all parts speak of the same number of samples; raises `DataError`."""
        counts = {len(self.voxels), len(self.sizes), len(self.matrix), len(self.scale), len(self.seeds)}
        counts |= set() if self.mm is None else {len(self.mm)}
        counts |= {len(self.scans)} if self.scans else set()
        if self.voxels.ndim != 5 or len(counts) != 1:
            raise DataError(f"batch must hold equally many parts, not {sorted(counts)}", "bad_batch")

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            voxels=change(self.voxels),
            label=None if self.label is None else change(self.label),
            sizes=change(self.sizes),
            matrix=change(self.matrix),
            scale=change(self.scale),
            seeds=self.seeds,
            indices=self.indices,
            removed=None if self.removed is None else change(self.removed),
            mm=None if self.mm is None else change(self.mm),
            scans=self.scans,
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copy overlaps with compute where memory is pinned."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (called by the data loader)."""
        return self._each(lambda part: part.pin_memory())


@dataclass(frozen=True, slots=True)
class Views:
    """Network-ready crops of each sample.

    Attributes:
        images: (b, v, 1, z, y, x) floats in 0..1; v crops of the same scan.
        inside: (b, v, 1, z, y, x) true where a voxel lies inside the scan.
        seeds: Seed of each sample.
    """

    images: Float[Tensor, "b v 1 z y x"]
    inside: Bool[Tensor, "b v 1 z y x"]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check shapes; raises `DataError`."""
        if self.images.ndim != 6 or self.images.shape != self.inside.shape or len(self.images) != len(self.seeds):
            raise DataError(f"views.images must be (b, v, 1, z, y, x), not {tuple(self.images.shape)}", "bad_batch")


@dataclass(frozen=True, slots=True)
class Losses:
    """Named scalar losses and their weights; the total is only ever summed from them.

    Attributes:
        terms: Scalar tensor of each term.
        weights: Weight of each term, same keys.
        watched: Scalars that are logged but not trained on.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    watched: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Check names and shapes; raises `DataError`."""
        if not self.terms or self.terms.keys() != self.weights.keys() or any(t.ndim for t in self.terms.values()):
            raise DataError(f"losses.terms must be scalars with one weight each, not {sorted(self.terms)}", "bad_batch")

    @property
    def total(self) -> Float[Tensor, ""]:
        """Weighted sum of the terms."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum()


def collate(patches: Sequence[Patch]) -> Batch:
    """Stack patches: promote number types to a common one, pad boxes at their far ends."""
    shape = np.max([p.voxels.shape for p in patches], axis=0)
    kind = np.result_type(*[p.voxels.dtype for p in patches])
    kind = np.dtype(
        {"uint16": "int32", "uint32": "float32", "float64": "float32", "int64": "float32"}.get(kind.name, kind)
    )
    voxels = np.empty((len(patches), 1, *shape), dtype=kind)
    # Only the padding is filled with zeros: all of it would be a second pass over memory.
    labelled = all(p.label is not None for p in patches)
    label = np.zeros(voxels.shape, dtype=np.uint8) if labelled else None
    removed = None if all(p.removed is None for p in patches) else np.zeros(voxels.shape, dtype=np.uint8)
    for row, patch in enumerate(patches):
        z, y, x = patch.voxels.shape
        if removed is not None and patch.removed is not None:
            removed[row, 0, :z, :y, :x] = patch.removed
        voxels[row, 0, :z, :y, :x] = patch.voxels
        voxels[row, 0, z:], voxels[row, 0, :z, y:], voxels[row, 0, :z, :y, x:] = 0, 0, 0
        if label is not None and patch.label is not None:
            label[row, 0, :z, :y, :x] = patch.label
    places = [p.mm for p in patches if p.mm is not None]
    numbers: dict[str, int] = {}
    return Batch(
        voxels=torch.from_numpy(voxels),
        label=None if label is None else torch.from_numpy(label),
        sizes=torch.tensor([p.voxels.shape for p in patches], dtype=torch.float32),
        matrix=torch.from_numpy(np.stack([p.matrix for p in patches])).float(),
        scale=torch.tensor([p.scale for p in patches], dtype=torch.float32),
        seeds=tuple(p.seed for p in patches),
        indices=tuple(p.index for p in patches),
        removed=None if removed is None else torch.from_numpy(removed),
        mm=torch.from_numpy(np.stack(places)).float() if len(places) == len(patches) else None,
        scans=tuple(numbers.setdefault(p.volume, len(numbers)) for p in patches),
    )
