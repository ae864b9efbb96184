import dataclasses

import numpy as np
import pytest
import torch

from pretrain.views import ViewsConfig, make_views
from voxscale.augment.contrast import ContrastConfig
from voxscale.augment.gamma import GammaConfig
from voxscale.augment.resample import resample
from voxscale.batch import Batch, Patch, collate
from voxscale.errors import ConfigError, DataError
from voxscale.seed import rng

PATCH = (8, 8, 8)
PLAIN = ViewsConfig(contrast=ContrastConfig(probability=0.0), gamma=GammaConfig(probability=0.0), invert=0.0)


def crop(seed: int, voxels: np.ndarray | None = None) -> Patch:
    if voxels is None:
        voxels = rng(seed, "voxels").integers(-1000, 1000, size=(8, 8, 8)).astype(np.int16)
    mapping = np.column_stack([np.eye(3), [-2.0, 0, 0]])  # the first slices lie outside the scan
    return Patch(voxels=voxels, label=None, matrix=mapping, scale=(1 / 2000, 0.5), seed=seed, index=0, volume="0" * 16)


def batch_of(*seeds: int) -> Batch:
    return collate([crop(seed) for seed in seeds])


def test_crops_of_a_sample_stand_together() -> None:
    batch = batch_of(10, 11, 20, 21, 30, 31)
    views = make_views(batch, PATCH, 2, ViewsConfig(intensity=False))
    images, inside, _ = resample(batch, PATCH)
    assert views.seeds == (10, 20, 30)
    assert views.images.shape == (3, 2, 1, *PATCH)
    for row in range(6):
        assert torch.equal(views.images[row // 2, row % 2], images[row])
        assert torch.equal(views.inside[row // 2, row % 2], inside[row])


def test_blanked_voxels_count_as_outside() -> None:
    removed = np.zeros((8, 8, 8), np.uint8)
    removed[:, 5:] = 1
    marked = dataclasses.replace(crop(3), removed=removed)
    views = make_views(collate([marked, crop(4)]), PATCH, 1, ViewsConfig())
    plain = make_views(batch_of(3, 4), PATCH, 1, ViewsConfig())
    assert not views.inside[0, :, :, :, 5:].any()
    assert (views.images[0, :, :, :, 5:] == 0).all()
    assert torch.equal(views.inside[0, :, :, :, :5], plain.inside[0, :, :, :, :5])
    assert torch.equal(views.inside[1], plain.inside[1])
    with pytest.raises(DataError, match="removed must have shape"):
        dataclasses.replace(crop(3), removed=removed[:4])


def test_ops_switched_off_one_by_one_leave_the_plain_crops() -> None:
    batch = batch_of(1, 2)
    assert torch.equal(
        make_views(batch, PATCH, 1, PLAIN).images, make_views(batch, PATCH, 1, ViewsConfig(intensity=False)).images
    )


def test_order_is_contrast_then_gamma_then_inversion() -> None:
    batch = batch_of(1, 2)
    steps = make_views(batch, PATCH, 1, dataclasses.replace(ViewsConfig(), gamma=PLAIN.gamma, invert=0.0)).images
    curved = make_views(batch, PATCH, 1, dataclasses.replace(ViewsConfig(), invert=0.0)).images
    inverted = make_views(batch, PATCH, 1, dataclasses.replace(ViewsConfig(), invert=1.0))
    inside = inverted.inside
    grey = (steps > 0.01) & (steps < 0.99)
    exponents = (curved[grey].log() / steps[grey].log()).view(-1)
    assert 0.7 <= exponents.min() < exponents.max() <= 1.5  # a power of the contrast's result, one per crop
    assert len(exponents.mul(1000).round().unique()) <= 4
    torch.testing.assert_close(inverted.images[inside], 1 - curved[inside])


def test_all_crops_of_a_sample_are_inverted_or_none() -> None:
    batch = collate([crop(seed) for seed in range(400)])
    half = dataclasses.replace(PLAIN, invert=0.25)
    plain, found = make_views(batch, PATCH, 2, PLAIN), make_views(batch, PATCH, 2, half)
    changed = (plain.images != found.images).flatten(2).any(dim=2)
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert 0.17 < changed[:, 0].float().mean() < 0.33


def test_outside_the_scan_stays_0() -> None:
    views = make_views(batch_of(1, 2, 3, 4), PATCH, 2, dataclasses.replace(ViewsConfig(), invert=1.0))
    assert not views.inside[..., :1, :, :].any()
    assert views.inside[..., 2:, :, :].all()
    assert (views.images[~views.inside] == 0).all()


def test_crops_that_share_a_seed_are_changed_differently() -> None:
    same = np.arange(512).reshape(8, 8, 8).astype(np.int16)
    views = make_views(
        collate([crop(5, same), crop(5, same)]), PATCH, 2, dataclasses.replace(ViewsConfig(), invert=0.0)
    )
    assert not torch.allclose(views.images[0, 0], views.images[0, 1], atol=1e-3)


def test_result_does_not_depend_on_how_samples_are_batched() -> None:
    together = make_views(batch_of(1, 2, 3, 4, 5, 6), PATCH, 2, ViewsConfig())
    apart = [make_views(batch_of(a, a + 1), PATCH, 2, ViewsConfig()) for a in (1, 3, 5)]
    for row, one in enumerate(apart):
        assert torch.equal(together.images[row], one.images[0])
    assert together.seeds == tuple(one.seeds[0] for one in apart)


@pytest.mark.parametrize("level", [-1000, 0, 1000, 3000])
def test_constant_and_mostly_air_crops_stay_finite(level: int) -> None:
    flat = np.full((8, 8, 8), level, dtype=np.int16)
    air = np.full((8, 8, 8), -1000, dtype=np.int16)
    air[4, 4, 4] = level
    views = make_views(collate([crop(seed, one) for seed, one in enumerate((flat, air))]), PATCH, 2, ViewsConfig())
    assert torch.isfinite(views.images).all()
    assert views.images.min() >= 0
    assert views.images.max() <= 1


def test_a_split_sample_is_refused() -> None:
    with pytest.raises(DataError, match="batch must hold a multiple of 2 crops, not 3"):
        make_views(batch_of(1, 2, 3), PATCH, 2, ViewsConfig())


def test_bad_config_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^views.invert must be 0 to 1, not 1.5"):
        ViewsConfig(invert=1.5)
