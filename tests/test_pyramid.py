import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import block_reduce

import voxscale.pyramid
from voxscale.pyramid import levels, shrink, shrink_label, shrink_mask

FACTORS = [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", ["int16", "uint8", "float32", "uint16"])
def test_means_are_those_of_scikit_image(factor, kind):
    voxels = (np.random.default_rng(0).random((8, 10, 12)) * 200).astype(kind)
    wanted = block_reduce(voxels.astype(np.float64), factor, np.mean)
    found = shrink(voxels, factor)
    assert found.dtype == voxels.dtype
    assert np.allclose(found, np.rint(wanted) if voxels.dtype.kind in "iu" else wanted, rtol=1e-6)


@pytest.mark.parametrize("slab", [1, 40, 130, 700])
@pytest.mark.parametrize("factor", FACTORS)
def test_parts_are_what_all_at_once_gives(factor, slab, monkeypatch):
    rng = np.random.default_rng(3)
    voxels, colours = rng.integers(0, 5, (7, 11, 13)).astype(np.uint8), rng.integers(0, 255, (3, 1, 11, 13), np.uint8)
    cases = [(shrink, voxels), (shrink_label, voxels), (shrink_mask, voxels), (shrink, voxels.astype(np.float32) / 3)]
    cases += [(shrink, colours)] if factor[0] == 1 else []
    want = [smaller(array, factor) for smaller, array in cases]
    monkeypatch.setattr(voxscale.pyramid, "SLAB", slab)
    for (smaller, array), whole in zip(cases, want, strict=True):
        assert np.array_equal(smaller(array, factor), whole)


def test_odd_sizes_repeat_their_last_voxel():
    assert shrink(np.array([[[1, 3, 8]]], np.int16), (1, 1, 2)).tolist() == [[[2, 8]]]
    assert shrink(np.full((3, 1, 5, 5), 7, np.uint8), (1, 2, 2)).shape == (3, 1, 3, 3)


@pytest.mark.parametrize("factor", FACTORS)
def test_label_is_the_majority(factor):
    label = np.random.default_rng(1).integers(0, 4, (6, 8, 4)).astype(np.uint8)
    found = shrink_label(label, factor)
    for z, y, x in np.ndindex(found.shape):
        block = label[tuple(slice(i * f, (i + 1) * f) for i, f in zip((z, y, x), factor, strict=True))]
        counts = Counter(block.reshape(-1).tolist())
        assert found[z, y, x] == min(counts, key=lambda value: (-counts[value], value))


@pytest.mark.parametrize("factor", FACTORS)
def test_a_blanked_voxel_stays_marked(factor):
    mask = (np.random.default_rng(2).random((6, 8, 4)) > 0.9).astype(np.uint8)
    assert np.array_equal(shrink_mask(mask, factor), block_reduce(mask, factor, np.max))


@given(st.tuples(*[st.integers(1, 600)] * 3), st.tuples(*[st.floats(0.2, 8)] * 3))
def test_levels_become_isotropic_and_never_tiny(shape, spacing):
    found = levels(shape, spacing)
    assert found[0].shape == shape
    assert 1 <= len(found) <= 3
    for before, now in itertools.pairwise(found):
        assert all(a <= b for a, b in zip(now.shape, before.shape, strict=True))
        assert all(n == m or m >= 32 for n, m in zip(now.shape, before.shape, strict=True))
        ratio = [
            max(s) / min(s) for s in ([a * f for a, f in zip(spacing, lv.factor, strict=True)] for lv in (before, now))
        ]
        if all(n >= 32 for n in before.shape):
            assert ratio[1] <= max(ratio[0], 2.0) + 1e-9
