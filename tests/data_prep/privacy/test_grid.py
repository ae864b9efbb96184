"""The coarse grid of heads: the same whether it is kept or made anew, percentiles as numpy gives them."""

import numpy as np
import pytest
from privacy_head import SPACING, head

from data_prep.privacy import bits, grid
from data_prep.privacy.face import find_face
from data_prep.privacy.grid import Coarse, percentile_of

WANTED = (0.0, 0.3, 50.0, 99.0, 99.999, 100.0)


def numbers():
    generator = np.random.default_rng(0)
    yield generator.normal(0, 300, 4321)
    yield generator.integers(0, 4, 1000)
    yield np.full(77, -12.5)
    yield np.array([3.0])
    yield np.array([-1e30, 0.0, -0.0, 1e-40, np.inf])
    yield np.concatenate([np.zeros(9000), generator.exponential(100, 1000)])


@pytest.mark.parametrize("values", list(numbers()))
def test_percentiles_are_those_of_numpy(values):
    values = values.astype(np.float32)
    parts = np.array_split(values, 3)
    for wanted in WANTED:
        if np.isinf(values).any() and wanted > 50:
            continue  # numpy's is NaN between a number and infinity
        assert percentile_of(lambda: iter(parts), wanted) == float(np.percentile(values, wanted))
    assert np.isnan(percentile_of(lambda: iter([values, np.full(1, np.nan, np.float32)]), 99))


@pytest.fixture
def not_kept(monkeypatch):
    monkeypatch.setattr(grid, "KEPT_CELLS", 0)
    monkeypatch.setattr(bits, "TOGETHER", 20_000)
    monkeypatch.setattr("voxscale.kernel.coarse.BLOCK", 50_000)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_grid_that_is_not_kept_says_the_same(modality, request):
    values, _, _ = head(modality)
    wide = np.pad(values, ((0, 0), (30, 60), (40, 40)), constant_values=values.min())
    scans = [values, wide, head(modality, face=False)[0], head(modality, skin=False)[0]]
    kept = [find_face(scan, SPACING, np.eye(4), modality) for scan in scans]
    whole = Coarse(wide, SPACING)
    cut, share = whole.cut(3, 40, slice(2, 60), slice(5, 70)), whole.percentile(99)
    assert [found.face for found in kept] == [True, True, False, False]
    request.getfixturevalue("not_kept")
    again = Coarse(wide, SPACING)
    assert np.array_equal(again.cut(3, 40, slice(2, 60), slice(5, 70)), cut)
    assert again.percentile(99) == share
    for scan, before in zip(scans, kept, strict=True):
        found = find_face(scan, SPACING, np.eye(4), modality)
        assert (found.head, found.face, found.reason) == (before.head, before.face, before.reason)
        assert np.array_equal(found.mask, before.mask)
