"""Masks of bits against scipy on whole arrays, however few slices are worked on at a time."""

import numpy as np
import pytest
from scipy import ndimage

from data_prep.privacy import bits
from data_prep.privacy.bits import Bits, keep_largest, open_mask


def packed(mask):
    out = Bits(mask.shape)
    out.put(0, mask)
    return out


def masks():
    """Noise of several densities (many parts, one of them large), columns that meet in the last slices, thin ones."""
    generator = np.random.default_rng(0)
    for share in (0.2, 0.32, 0.6):
        yield generator.random((23, 17, 19)) < share
    yield generator.random((1, 20, 8)) < 0.5
    yield generator.random((5, 1, 3)) < 0.9
    columns = np.zeros((30, 9, 40), dtype=bool)
    columns[:, 4, ::3] = True
    columns[-1, 4, :25] = True
    yield columns
    equal = np.zeros((12, 5, 5), dtype=bool)
    equal[2:4, 1:3, 1:3] = equal[8:10, 1:3, 1:3] = True
    yield equal
    yield equal[::-1] & False


def largest(mask):
    found, count = ndimage.label(mask)
    return found == 1 + np.argmax(np.bincount(found.reshape(-1))[1:]) if count else mask


@pytest.mark.parametrize("together", [1, 700, 1 << 20])
@pytest.mark.parametrize("mask", list(masks()))
def test_largest_part_and_opening(mask, together, monkeypatch):
    monkeypatch.setattr(bits, "TOGETHER", together)
    found = packed(mask)
    assert np.array_equal(found[:], mask)
    assert np.array_equal(np.stack(list(found)), mask)
    assert keep_largest(found) == mask.any()
    assert np.array_equal(found[:], largest(mask))
    found = packed(mask)
    open_mask(found)
    assert np.array_equal(found[:], ndimage.binary_opening(mask))


def test_more_parts_than_16_bits_tell_apart():
    many = np.zeros((8, 400, 400), dtype=bool)
    many[::2, ::2, ::2] = True
    many[6, 399, 0:9] = True
    assert ndimage.label(many)[1] > 1 << 16
    found = packed(many)
    assert keep_largest(found)
    assert np.array_equal(found[:], largest(many))
