"""Parts tile their whole; mirroring permutes slots."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxscale.errors import ConfigError
from voxscale.parts import join, mirrored_slots, part_size, slot_means, split, split_longest

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
    assert split_longest((300.0, 200.0, 100.0), 8) == (2, 2, 2)
    assert split_longest((60.0, 300.0, 300.0), 4) == (1, 2, 2)
    assert split_longest((300.0, 100.0, 200.0), 4) == (2, 1, 2)
    assert split_longest((100.0, 150.0, 100.0), 2) == (1, 2, 1)
    assert split_longest((0.0, 10.0, 10.0), 4) == (1, 2, 2)  # an image
    for extent, parts in (((1.0, 1.0, 1.0), 6), ((0.0, 1.0, 1.0), 8), ((1.0, 1.0, 1.0), 1)):
        with pytest.raises(ConfigError, match=r"^parts must be 2, 4 or 8"):
            split_longest(extent, parts)
    with pytest.raises(ConfigError, match=r"^splits must be divisors of the whole, \(4, 6, 5\)"):
        part_size((4, 6, 5), (2, 2, 2))


def test_means_of_slots_are_means_of_parts_and_share_out_odd_cells():
    features = torch.randn(2, 3, 4, 6, 2, generator=torch.Generator().manual_seed(0))
    want = split(features, (2, 3, 1)).mean(dim=(3, 4, 5))
    torch.testing.assert_close(slot_means(features, (2, 3, 1)), want)
    row = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 1, 1, 3)
    assert slot_means(row, (1, 1, 2))[0, :, 0].tolist() == pytest.approx([(1 + 2 / 2) / 1.5, (2 / 2 + 6) / 1.5])
