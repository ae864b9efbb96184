"""Parts tile their whole; mirroring permutes slots."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxscale.errors import ConfigError
from voxscale.parts import join, legal_splits, mirrored_slots, part_size, slot_means, split

SPLITS = st.tuples(*[st.integers(1, 3)] * 3)


def a_whole(splits, channels=2):
    size = [n * (2 + axis) for axis, n in enumerate(splits)]
    count = 2 * channels * size[0] * size[1] * size[2]
    return torch.arange(count, dtype=torch.float32).view(2, channels, *size)


@given(SPLITS)
def test_parts_tile_the_whole_without_loss_or_overlap(splits):
    whole = a_whole(splits)
    parts = split(whole, splits)
    assert parts.shape == (2, splits[0] * splits[1] * splits[2], 2, 2, 3, 4)
    assert torch.equal(parts.flatten(1).sort(dim=1)[0], whole.flatten(1))  # each voxel once
    assert torch.equal(join(parts, splits), whole)


def test_eight_parts_are_octants_in_the_order_z_y_x():
    whole = torch.arange(64).view(1, 1, 4, 4, 4)
    parts = split(whole, (2, 2, 2))
    for slot, (z, y, x) in enumerate(itertools.product((0, 2), repeat=3)):
        assert torch.equal(parts[0, slot, 0], whole[0, 0, z : z + 2, y : y + 2, x : x + 2])


@given(SPLITS, st.tuples(*[st.booleans()] * 3))
def test_parts_of_a_mirrored_whole_are_mirrored_parts_in_other_slots(splits, flips):
    whole = a_whole(splits)
    axes = [axis for axis in range(3) if flips[axis]]
    order = mirrored_slots(splits, flips)
    mirrored = split(whole.flip([2 + axis for axis in axes]), splits)
    assert torch.equal(mirrored, split(whole, splits)[:, order].flip([3 + axis for axis in axes]))
    assert [order[k] for k in order] == list(range(len(order)))


def test_the_longest_axes_in_mm_are_split():
    def splits(size, spacing, parts, legal=lambda _: True):
        return legal_splits(size, spacing, parts, legal)

    assert splits((30, 20, 10), (1.0, 1.0, 1.0), 8) == (2, 2, 2)
    assert splits((30, 20, 10), (1.0, 2.0, 5.0), 4) == (1, 2, 2)
    assert splits((30, 20, 10), (1.0, 1.0, 2.5), 4) == (2, 1, 2)
    assert splits((10, 16, 10), (1.0, 1.0, 1.0), 2) == (1, 2, 1)
    assert splits((10, 10, 10), (1.0, 1.0, 1.0), 4) == (2, 2, 1)
    assert splits((1, 10, 10), (9.0, 1.0, 1.0), 4) == (1, 2, 2)  # an image
    assert splits((1, 10, 10), (9.0, 1.0, 1.0), 8) is None
    assert splits((15, 10, 10), (1.0, 1.0, 1.0), 4) == (1, 2, 2)  # 15 has no half
    assert splits((15, 15, 10), (1.0, 1.0, 1.0), 4) is None


def test_axes_whose_halves_a_network_does_not_take_stay_whole():
    def legal(size):
        return all(n % 8 == 0 for n in size)

    patch = (32, 40, 24)
    assert legal_splits(patch, (1.0, 1.0, 1.0), 8, legal) is None
    assert legal_splits(patch, (1.0, 1.0, 1.0), 4, legal) is None
    assert legal_splits(patch, (1.0, 1.0, 1.0), 2, legal) == (2, 1, 1)
    assert legal_splits((32, 40, 16), (1.0, 1.0, 4.0), 4, legal) == (2, 1, 2)
    assert legal_splits((24, 40, 24), (1.0, 1.0, 1.0), 2, legal) is None


def test_parts_that_do_not_tile_are_refused():
    with pytest.raises(ConfigError, match=r"^splits must be divisors of the whole, \(4, 6, 5\)"):
        part_size((4, 6, 5), (2, 2, 2))


def test_means_of_slots_are_means_of_parts_and_share_out_odd_cells():
    features = torch.randn(2, 3, 4, 6, 2, generator=torch.Generator().manual_seed(0))
    want = split(features, (2, 3, 1)).mean(dim=(3, 4, 5))
    torch.testing.assert_close(slot_means(features, (2, 3, 1)), want)
    row = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 1, 1, 3)
    assert slot_means(row, (1, 1, 2))[0, :, 0].tolist() == pytest.approx([(1 + 2 / 2) / 1.5, (2 / 2 + 6) / 1.5])
