import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests_stores import make_store

from data_prep.pack import PackConfig, pack
from voxscale.augment.resample import resample
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import collate
from voxscale.contract import InputContract
from voxscale.errors import ConfigError, DataError
from voxscale.store import open_store
from voxscale.stream import (
    CaseStream,
    CaseStreamConfig,
    ShardStream,
    ShardStreamConfig,
    cut,
    load,
    place,
    rank_indices,
)

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
STILL = SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store", 4, labelled=False)
    pack(folder / "store", folder / "shards", CONTRACT, (8, 8, 8), STRIDES, PackConfig(factor=1.25))
    return folder / "shards"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    make_store(folder / "store", 3, labelled=True, contract=CONTRACT)
    return folder / "store"


def same(a, b):
    return (
        a.index == b.index
        and a.seed == b.seed
        and a.volume == b.volume
        and np.array_equal(a.voxels, b.voxels)
        and np.array_equal(a.matrix, b.matrix)
    )


def test_a_sample_is_a_function_of_seed_and_index(shards):
    one, two = (ShardStream(shards, ShardStreamConfig(), seed=3) for _ in range(2))
    for index in (0, 5, 1000):
        a, b = one.sample(index), two.sample(index)
        assert len(a) == 2
        assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not same(one.sample(0)[0], ShardStream(shards, ShardStreamConfig(), seed=4).sample(0)[0])
    assert not same(one.sample(0)[0], one.sample(0)[1])


def test_every_brick_comes_once_per_repeat_and_epoch(shards):
    stream = ShardStream(shards, ShardStreamConfig(repeats=3), seed=0)
    places = {}
    for epoch in range(2):
        order = []
        for index in range(epoch * len(stream), (epoch + 1) * len(stream)):
            epoch_, rest = divmod(index, len(stream))
            order.append(stream.entry(epoch_, rest))
        counts = np.bincount(order, minlength=len(stream.bricks))
        assert (counts == 3).all()
        places[epoch] = order
    assert places[0] != places[1]


@settings(max_examples=60, deadline=None)
@given(
    accumulate=st.integers(1, 3),
    micro=st.integers(1, 3),
    steps=st.integers(1, 6),
    cuts=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 3, 6])), max_size=3),
)
def test_stopping_and_resizing_never_repeats_or_skips_a_sample(accumulate, micro, steps, cuts):
    batch = accumulate * micro * 6
    whole = list(range(steps * batch))
    seen, start = [], 0
    for stop, world in [*sorted(cuts), (steps, 2)]:
        stop = min(max(stop, start), steps)
        ranks = [list(rank_indices(start, stop, batch, accumulate, r, world)) for r in range(world)]
        for micro_batches in zip(*ranks, strict=True):
            seen += itertools.chain(*micro_batches)
        start = stop
    assert seen == whole


def test_workers_change_nothing(shards):
    stream = ShardStream(shards, ShardStreamConfig(), seed=0)
    loaded = [list(load(stream, rank_indices(1, 4, 4, 1, 0, 2), workers=w, pin=False)) for w in (0, 2)]
    assert len(loaded[0]) == 3
    for a, b in zip(*loaded, strict=True):
        assert a.indices == b.indices
        assert a.seeds == b.seeds
        assert torch.equal(a.voxels, b.voxels)
        assert torch.equal(a.matrix, b.matrix)


def test_crops_show_the_scan_where_they_say(shards):
    """A crop resampled by its matrix equals the scan sampled at the same points in mm."""
    stream = ShardStream(shards, ShardStreamConfig(views=1, spatial=STILL), seed=0)
    patch = stream.sample(2)[0]
    images, inside, _ = resample(collate([patch]), (8, 8, 8))
    value = images[0, 0, 4, 4, 4] * 2000 - 1000
    index = patch.matrix @ [4, 4, 4, 1]
    low = np.floor(index).astype(int)
    around = patch.voxels[tuple(slice(a, a + 2) for a in low)]
    assert around.min() - 1 <= float(value) <= around.max() + 1
    np.testing.assert_allclose(np.diag(patch.matrix[:, :3]), [1.0, 2 / 1.5, 2 / 1.5])
    assert inside.all()


def test_case_stream_yields_labels_on_the_voxels_it_centres_on(task):
    ids = sorted(open_store(task).entries)
    config = CaseStreamConfig(foreground=1.0, spatial=STILL)
    stream = CaseStream(task, ids, (8, 8, 8), CONTRACT, config, seed=0)
    for index in range(12):
        (patch,) = stream.sample(index)
        _, _, label = resample(collate([patch]), (8, 8, 8))
        assert label[0, 0, 2:6, 2:6, 2:6].max() > 0
    volumes = [stream.sample(i)[0].volume for i in range(6)]
    assert sorted(volumes[:3]) == ids
    assert sorted(volumes[3:]) == ids


def test_case_stream_is_a_function_of_seed_and_index(task):
    ids = sorted(open_store(task).entries)
    streams = [CaseStream(task, ids, (8, 8, 8), CONTRACT, CaseStreamConfig(), seed=1) for _ in range(2)]
    assert same(streams[0].sample(7)[0], streams[1].sample(7)[0])


def test_a_scan_smaller_than_the_patch_is_shown_whole(task):
    ids = sorted(open_store(task).entries)
    stream = CaseStream(task, ids, (64, 64, 64), CONTRACT, CaseStreamConfig(spatial=STILL), seed=0)
    (patch,) = stream.sample(0)
    assert patch.voxels.shape == (20, 24, 22)
    images, inside, _ = resample(collate([patch]), (64, 64, 64))
    assert 0 < inside.float().mean() < 0.2
    assert images[~inside].abs().max() == 0


@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 50)] * 3), st.integers(0, 2**32))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_boxes_lie_inside_the_scan(shape, size, seed):
    centre = place(np.random.default_rng(seed), shape, size)
    box = cut(shape, size, centre)
    for s, n, want in zip(box, shape, size, strict=True):
        assert 0 <= s.start < s.stop <= n
        assert s.stop - s.start == min(n, want)


def test_no_case_is_refused(task):
    with pytest.raises(DataError, match="at least one labelled scan"):
        CaseStream(task, [], (8, 8, 8), CONTRACT, CaseStreamConfig(), seed=0)


def test_bad_config_is_refused():
    with pytest.raises(ConfigError, match="stream.views"):
        ShardStreamConfig(views=0)
    with pytest.raises(ConfigError, match="stream.repeats"):
        ShardStreamConfig(repeats=0)
    with pytest.raises(ConfigError, match="stream.foreground"):
        CaseStreamConfig(foreground=1.5)
    assert dataclasses.replace(ShardStreamConfig(), views=1).views == 1


def test_scans_beyond_the_cache_give_the_same_patches(task):
    ids = sorted(open_store(task).entries)
    for index in range(6):
        one, two = (
            CaseStream(task, ids, (8, 8, 8), CONTRACT, CaseStreamConfig(cache_gb=gb), seed=1).sample(index)[0]
            for gb in (0.0, 1.0)
        )
        assert same(one, two)
        assert np.array_equal(one.label, two.label)
