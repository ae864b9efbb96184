"""Coarser boxes show the same places: compared with the store's pyramid, and with finer boxes."""

import numpy as np
import pytest
import torch

from voxscale.augment.pool import coarser
from voxscale.augment.resample import resample
from voxscale.batch import Patch, collate
from voxscale.pyramid import shrink
from voxscale.seed import rng


def a_batch(*shapes, removed=False):
    eye = np.eye(3, 4)
    made = []
    for number, shape in enumerate(shapes):
        voxels = rng(number, "voxels").random(shape).astype(np.float32)
        mask = None
        if removed:
            mask = np.zeros(shape, np.uint8)
            mask[0, 0, 0] = 1
        made.append(Patch(voxels, None, eye, (1.0, 0.0), number, number, "v", mask))
    return collate(made)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_means_are_those_of_the_pyramid_where_blocks_are_whole(factor):
    batch = a_batch((8, 6, 4), (4, 4, 2))
    found = coarser(batch, factor)
    for row, size in enumerate(((8, 6, 4), (4, 4, 2))):
        z, y, x = (n // f for n, f in zip(size, factor, strict=True))
        want = shrink(batch.voxels[row, 0, : size[0], : size[1], : size[2]].numpy(), factor)
        np.testing.assert_allclose(found.voxels[row, 0, :z, :y, :x], want, rtol=1e-5)
        assert found.sizes[row].tolist() == [z, y, x]


def test_padding_and_cut_blocks_do_not_darken_the_means():
    batch = a_batch((5, 5, 5), (8, 8, 8))
    bright = coarser(type(batch)(**{**fields(batch), "voxels": torch.ones_like(batch.voxels)}), (2, 2, 2))
    assert torch.allclose(bright.voxels[0, 0, :3, :3, :3], torch.ones(3, 3, 3))
    assert bright.sizes[0].tolist() == [3, 3, 3]


def fields(batch):
    return {name: getattr(batch, name) for name in batch.__dataclass_fields__}


def test_a_ramp_is_read_at_the_same_places():
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in (16, 16, 16)], indexing="ij")
    place = np.column_stack([np.diag([2.0, 3.0, 2.5]), [2.5, 2.5, 2.0]])
    batch = collate([Patch((z + 2 * y + 3 * x) / 100, None, place, (1.0, 0.0), 0, 0, "v")])
    fine, _, _ = resample(batch, (5, 4, 5))
    coarse, inside, _ = resample(coarser(batch, (2, 2, 2)), (5, 4, 5))
    assert inside.all()
    torch.testing.assert_close(coarse, fine, atol=1e-5, rtol=0)


def test_blanked_voxels_stay_blanked():
    found = coarser(a_batch((4, 4, 4), removed=True), (2, 2, 2))
    assert found.removed.sum() == 1
    assert found.removed[0, 0, 0, 0, 0] == 1
