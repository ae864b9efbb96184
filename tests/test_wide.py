"""Crops wider than the patch, read from coarser levels: their voxels, their place, and what is read for them."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_stores import make_store

from voxscale.augment.spatial import Spatial, SpatialConfig, extent
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.pyramid import levels
from voxscale.store import open_store
from voxscale.stream import Curriculum, StoreStream, StoreStreamConfig, WideCrops
from voxscale.stream.wide import SHOWN, level_draw, level_for, placed, widened

CONTRACT = InputContract(spacing=(1.0, 1.0, 1.0))
PATCH = (16, 16, 16)
STILL = SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0))
SHAPE = (96, 80, 88)
EVEN = Curriculum((0.4, 0.3, 0.3), 0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "store"
    make_store(path, 3, labelled=False, shape=SHAPE, spacing=(1.0, 1.0, 1.0))
    return path


def wide(view=0, wider=2, curriculum=EVEN, batch=4, steps=20):
    return WideCrops(view, wider, curriculum, batch, steps)


def always(level, **how):
    """A curriculum that has one level all the time."""
    return wide(curriculum=Curriculum(tuple(float(n == level) for n in range(3)), 0.0), **how)


def stream_of(path, crops, views=1, seed=0, patch=PATCH, contract=CONTRACT, **how):
    return StoreStream(path, patch, contract, StoreStreamConfig(views=views, **how), seed, crops)


@pytest.mark.parametrize(("level", "times"), [(0, 4), (1, 2), (2, 1)])
def test_a_wide_crop_holds_the_voxels_that_zarr_reads_of_the_level(store, level, times):
    """At the place that its mm say, which are those of an upright crop so many times as wide."""
    stream = stream_of(store, always(level), spatial=STILL)
    entries = open_store(store).entries
    for index in range(12):
        ((patch,), bad) = stream.sample(index)
        assert not bad
        spacing, number = np.asarray(entries[patch.volume].spacing), {4: 2, 2: 1, 1: 0}[times]
        np.testing.assert_allclose(patch.mm[:, :3], np.eye(3) * times)
        # The first voxel of a level is centred between those that it is the mean of.
        corner = (patch.mm[:, 3] - patch.matrix[:, 3] * times - (times - 1) / 2) / (spacing * times)
        start = corner.round().astype(int)
        np.testing.assert_allclose(corner, start, atol=1e-9)
        there = zarr.open_array(store / patch.volume / str(number), mode="r")
        box = tuple(slice(a, a + n) for a, n in zip(start, patch.voxels.shape, strict=True))
        np.testing.assert_array_equal(patch.voxels, there[box])
        np.testing.assert_allclose(patch.matrix[:, :3], np.eye(3), atol=1e-12)
        assert max(patch.voxels.shape) <= 16 + 3  # as many voxels as a plain crop has


def test_a_wide_crop_shows_the_scan_where_it_says(store):
    """Means of blocks of the scan's own voxels, at the places of the crop's voxels in mm."""
    stream = stream_of(store, always(0), spatial=STILL)
    ((patch,), _) = stream.sample(5)
    whole = open_store(store).read(patch.volume).astype(float)
    centre = patch.mm @ [8, 8, 8, 1]
    z, y, x = np.round(patch.matrix @ [8, 8, 8, 1]).astype(int)
    near = np.round(centre - (patch.matrix @ [8, 8, 8, 1] - [z, y, x]) * 4 - 1.5).astype(int)
    block = whole[tuple(slice(n, n + 4) for n in near)]
    assert block.shape == (4, 4, 4)
    assert abs(block.mean() - float(patch.voxels[z, y, x])) < 1.01  # each of two levels is rounded


def test_other_crops_of_a_sample_are_as_without_it(store):
    plain, both = stream_of(store, None, views=2), stream_of(store, always(0, view=1), views=2)
    for index in range(8):
        a, b = plain.sample(index)[0], both.sample(index)[0]
        for name in ("voxels", "matrix", "mm"):
            np.testing.assert_array_equal(getattr(a[0], name), getattr(b[0], name))
            assert not np.array_equal(getattr(a[1], name), getattr(b[1], name))
        assert [p.seed for p in a] == [p.seed for p in b]
        np.testing.assert_allclose(b[1].mm[:, :3], 4 * a[1].mm[:, :3])


def test_a_level_of_one_is_a_plain_crop_to_the_last_bit(store):
    plain, same = stream_of(store, None), stream_of(store, always(2))
    for index in range(8):
        ((a,), _), ((b,), _) = plain.sample(index), same.sample(index)
        for name in ("voxels", "matrix", "mm"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_the_width_of_a_sample_is_that_of_its_step_and_its_own_draw(store):
    """Counted against a second way to say it: shares of levels at each step."""
    crops = wide(steps=200)
    stream = stream_of(store, crops, spatial=STILL)
    found = {step: [] for step in (0, 80, 140, 199)}
    for step, widths in found.items():
        for index in range(step * 4, step * 4 + 4):
            ((patch,), _) = stream.sample(index)
            widths.append(round(patch.mm[0, 0]))
            level = EVEN.level(step / 200, level_draw(patch.seed))
            assert widths[-1] == 2 ** (2 - level) == crops.factor(index, patch.seed)
    assert set(found[0]) == {4}
    assert set(found[199]) == {1}
    mixed = Counter(crops.factor(80 * 4 + n % 4, n) for n in range(2000))
    assert mixed[4] + mixed[2] == 2000  # half way from the first to the second
    assert abs(mixed[4] / 2000 - 0.5) < 0.05


def test_a_wide_crop_reads_fewer_chunks_than_the_same_crop_of_the_scan(store, monkeypatch):
    from voxscale import chunks

    decoded = []
    inner = chunks._decode
    monkeypatch.setattr(
        chunks,
        "_decode",
        lambda layout, blob, rows, *more: decoded.append(int(rows["bytes"].sum())) or inner(layout, blob, rows, *more),
    )

    def cost(stream):
        decoded.clear()
        for index in range(6):
            stream.sample(index)
        return sum(decoded)

    coarse = cost(stream_of(store, always(0), spatial=STILL))
    zoomed = cost(stream_of(store, None, spatial=dataclasses.replace(STILL, zoom=(4.0, 4.0))))
    assert coarse < zoomed / 8


def test_a_crop_is_only_as_wide_as_its_scan_has_something_to_show(store):
    drawn = Spatial()
    how = (PATCH, CONTRACT)
    assert widened(drawn, 4, *how, (64, 64, 64), (1.0, 1.0, 1.0))[1] == 4
    assert widened(drawn, 4, *how, (40, 40, 64), (1.0, 1.0, 1.0))[1] == 2
    assert widened(drawn, 4, *how, (12, 40, 64), (1.0, 1.0, 1.0))[1] == 1
    assert widened(drawn, 2, *how, (64, 64, 64), (1.0, 1.0, 1.0))[0].zoom == (2.0, 2.0, 2.0)
    assert widened(drawn, 2, (1, 16, 16), CONTRACT, (3, 64, 64), (1.0, 1.0, 1.0))[0].zoom == (1.0, 2.0, 2.0)
    assert widened(drawn, 4, (1, 16, 16), CONTRACT, (1, 64, 64), (1.0, 1.0, 1.0))[0].zoom == (1.0, 4.0, 4.0)  # an image
    small = stream_of(store, always(0), patch=(48, 48, 48), spatial=STILL)
    assert {round(small.sample(index)[0][0].mm[0, 0]) for index in range(6)} == {2}


def test_the_level_is_the_coarsest_that_is_sharp_enough():
    def level(factor, spacing, shape=(256, 256, 256), patch=PATCH):
        return level_for(factor, patch, CONTRACT, spacing, levels(shape, spacing))

    assert [level(by, (1.0, 1.0, 1.0)) for by in (1, 2, 4)] == [0, 1, 2]
    assert [level(by, (0.5, 0.5, 0.5)) for by in (1, 2, 4)] == [0, 2, 2]  # of which there is no coarser one
    assert [level(by, (2.0, 2.0, 2.0)) for by in (1, 2, 4)] == [0, 0, 1]
    assert [level(by, (5.0, 0.7, 0.7)) for by in (1, 2, 4)] == [0, 2, 2]  # thick slices are not halved
    assert level(4, (1.0, 1.0, 1.0), shape=(40, 20, 20)) == 1  # where the pyramid ends
    assert level(4, (1.0, 1.0, 1.0), patch=(1, 16, 16)) == 0  # a slice is no thicker


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.integers(3, 200)] * 3),
    st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.5, 5.0])] * 3),
    st.tuples(*[st.floats(0.7, 1.5)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.sampled_from([1, 2, 4]),
)
def test_all_levels_put_a_crop_at_the_same_place(shape, spacing, zoom, flips, where, factor):
    """In mm, whichever level it is read from; boxes lie inside their level and hold what of the crop is in the scan."""
    drawn, factor = widened(Spatial(zoom, flips), factor, PATCH, CONTRACT, shape, spacing)
    size = extent(drawn, PATCH, CONTRACT.spacing, spacing)
    assert factor == 1 or np.prod([min(n, s) / s for n, s in zip(shape, size, strict=True)]) >= SHOWN
    centre = tuple(w * (n - 1) for w, n in zip(where, shape, strict=True))
    pyramid = levels(shape, spacing)
    found = [placed(drawn, PATCH, CONTRACT, spacing, centre, n, one) for n, one in enumerate(pyramid)]
    corners = np.array(np.meshgrid(*[[0, 15]] * 3, [1])).reshape(4, -1)
    for one, place in zip(pyramid, found, strict=True):
        np.testing.assert_allclose(place.mm, found[0].mm, atol=1e-8)
        assert all(0 <= s.start < s.stop <= n for s, n in zip(place.box, one.shape, strict=True))
        at = place.matrix @ corners + np.array([[s.start] for s in place.box])  # voxels of the level
        low, high = at.min(axis=1), at.max(axis=1)
        for axis, (s, n) in enumerate(zip(place.box, one.shape, strict=True)):
            if low[axis] < n - 1 and high[axis] > 0:
                assert s.start <= max(low[axis], 0) + 1e-9
                assert s.stop - 1 >= min(high[axis], n - 1) - 1e-9


def test_a_damaged_level_is_replaced_and_named(store, tmp_path):
    import shutil

    shutil.copytree(store, tmp_path / "store")
    broken = sorted(open_store(store).entries)[0]
    file = next(p for p in (tmp_path / "store" / broken / "2" / "c").rglob("*") if p.is_file())
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), 50):
        data[place] ^= 1
    file.write_bytes(data)
    stream = stream_of(tmp_path / "store", always(0))
    bad = [stream.sample(index)[1] for index in range(len(stream))]
    assert {pair for each in bad for pair in each} == {(broken, "corrupt")}
    fine = stream_of(tmp_path / "store", always(2))
    assert not any(fine.sample(index)[1] for index in range(len(fine)))
    shutil.rmtree(tmp_path / "store" / broken / "2")
    assert any(stream_of(tmp_path / "store", always(0)).sample(index)[1] for index in range(len(stream)))


def test_an_unknown_level_is_refused_by_the_store(store):
    opened = open_store(store)
    with pytest.raises(DataError, match="level must be below 3, not 3"):
        opened.read(next(iter(opened.entries)), level=3)
