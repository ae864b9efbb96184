"""From a batch of stored boxes to the network-ready crops of each sample."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voxscale.augment import contrast, gamma
from voxscale.augment.contrast import ContrastConfig
from voxscale.augment.gamma import GammaConfig
from voxscale.augment.resample import resample
from voxscale.batch import Batch, Views
from voxscale.config import config, require
from voxscale.errors import DataError
from voxscale.seed import rng


@config
class ViewsConfig:
    """How crops are changed before the objective sees them.

    The defaults are those of Volume Fusion's journal version (Wang et al., IEEE
    TIP 34, 2025; PyMIC): contrast, gamma, then inversion. Zoom and mirroring are
    already in the batch, see `voxscale.augment.spatial`.

    Attributes:
        intensity: Whether values are changed at all; false leaves the plain crops.
        contrast: Percentile contrast of each crop.
        gamma: Gamma curve of each crop.
        invert: Probability of turning x into 1 - x in all crops of a sample together.
    """

    intensity: bool = True
    contrast: ContrastConfig = ContrastConfig()
    gamma: GammaConfig = GammaConfig()
    invert: float = 0.25

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(0 <= self.invert <= 1, "views.invert", "0 to 1", self.invert)


def _crop_rngs(seeds: Sequence[int], per_sample: int, op: str) -> list[np.random.Generator]:
    """One generator per crop; crops of a sample differ even where they share a seed."""
    return [rng(seed, "views", op, row % per_sample) for row, seed in enumerate(seeds)]


@torch.no_grad()
def make_views(batch: Batch, patch: tuple[int, int, int], views_per_sample: int, config: ViewsConfig) -> Views:
    """Resample and augment a batch on its device.

    Every draw comes from the seed of its own crop (the inversion's from the
    sample's first crop), so a sample looks the same however it is batched.
    Outside the scan the views stay 0, inverted or not.

    Args:
        batch: (samples * views_per_sample) boxes; the crops of a sample stand together.
        patch: Voxels of each crop along z, y, x.
        views_per_sample: Crops per sample.
        config: How crops are changed.

    Raises:
        DataError: If the batch does not hold whole samples.
    """
    if len(batch.seeds) % views_per_sample:
        raise DataError(f"batch must hold a multiple of {views_per_sample} crops, not {len(batch.seeds)}", "bad_batch")
    images, inside, _ = resample(batch, patch)
    seeds = batch.seeds[::views_per_sample]
    if config.intensity:
        images = change_intensity(images, lambda op: _crop_rngs(batch.seeds, views_per_sample, op), config)
        images = invert(images, inside, seeds, config.invert)
    shape = (len(seeds), views_per_sample, 1, *patch)
    return Views(images=images.view(shape), inside=inside.view(shape), seeds=seeds)


def change_intensity(
    images: Float[Tensor, "n 1 z y x"], rngs: Callable[[str], list[np.random.Generator]], config: ViewsConfig
) -> Float[Tensor, "n 1 z y x"]:
    """Contrast, then gamma.

    Args:
        images: In 0..1.
        rngs: Gives the generators of an op, one for each image.
        config: How values are changed.
    """
    drawn = contrast.sample(rngs("contrast"), config.contrast), gamma.sample(rngs("gamma"), config.gamma)
    return contrast.apply(images, drawn[0], drawn[1].exponent)


def invert(
    images: Float[Tensor, "n 1 z y x"], inside: Bool[Tensor, "n 1 z y x"], seeds: Sequence[int], probability: float
) -> Float[Tensor, "n 1 z y x"]:
    """Turn x into 1 - x inside the scan, in all crops of a sample or in none."""
    drawn = torch.tensor([rng(seed, "views", "invert").random() < probability for seed in seeds])
    if not drawn.any():
        return images
    per_crop = drawn.repeat_interleave(len(images) // len(seeds)).to(images.device).view(-1, 1, 1, 1, 1)
    return torch.where(per_crop, inside.to(images) - images, images)
