import dataclasses
import itertools
import pickle
import shutil
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_tars import write_shards
from tests_stores import make_store

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from voxscale import index_write
from voxscale.augment.resample import resample
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import collate
from voxscale.contract import InputContract
from voxscale.entry import Occupancy
from voxscale.errors import ConfigError, DataError
from voxscale.ledger import accepted
from voxscale.loader import LoaderConfig, load
from voxscale.store import open_store
from voxscale.stream import (
    CaseStream,
    CaseStreamConfig,
    ShardStream,
    ShardStreamConfig,
    StoreStream,
    StoreStreamConfig,
    WeightsConfig,
    rank_indices,
)
from voxscale.stream.crop import cut, on_body, place
from voxscale.stream.epoch import Order

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
STILL = SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store", 5, labelled=False, shape=(50, 60, 44))
    pack(folder / "store", folder / "shards", CONTRACT, (8, 8, 8), STRIDES, PackConfig(factor=1.25, shard_mb=1))
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
        (a, _), (b, _) = one.sample(index), two.sample(index)
        assert len(a) == 2
        assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not same(one.sample(0)[0][0], ShardStream(shards, ShardStreamConfig(), seed=4).sample(0)[0][0])
    assert not same(*one.sample(0)[0])


def test_crops_have_memory_of_their_own(shards):
    """Whatever is done to a crop, others and the same one asked for again are as they were."""
    stream = ShardStream(shards, ShardStreamConfig(views=2, patches=2), seed=3)
    fresh = ShardStream(shards, ShardStreamConfig(views=2, patches=2), seed=3)
    for index in (0, 1, 0, 1):
        crops, wanted = stream.sample(index)[0], fresh.sample(index)[0]
        assert all(same(a, b) for a, b in zip(crops, wanted, strict=True))
        for crop in crops:
            crop.voxels[...] = 0


def test_crops_as_floats_are_the_same_numbers(shards):
    stored = ShardStream(shards, ShardStreamConfig(patches=2), seed=3)
    floats = ShardStream(shards, ShardStreamConfig(patches=2, as_float=True), seed=3)
    for index in range(6):
        for a, b in zip(stored.sample(index)[0], floats.sample(index)[0], strict=True):
            assert (a.voxels.dtype, b.voxels.dtype) == (np.int16, np.float32)
            assert same(a, b)


@pytest.mark.parametrize(("views", "patches"), [(1, 1), (2, 1), (1, 4), (2, 3)])
def test_crops_are_those_of_the_whole_brick_whoever_reads_their_neighbours(shards, views, patches):
    config = ShardStreamConfig(views=views, patches=patches)
    stream = ShardStream(shards, config, seed=2)
    for index in range(13):
        crops = stream.sample(index)[0]
        brick = stream._reader.open(*stream.brick(stream.entry(index)))
        (whole,) = brick.read()
        alone = ShardStream(shards, config, seed=2).sample(index)[0]
        for view, (crop, other) in enumerate(zip(crops, alone, strict=True)):
            assert np.array_equal(crop.voxels, whole[stream._place(brick.info, index, view, 0).box])
            assert same(crop, other)


def test_damage_counts_alike_for_whoever_reads_a_brick(shards, tmp_path):
    """A changed byte of a brick that samples share: read in a row, backwards or alone, the same are replaced."""
    shutil.copytree(shards, tmp_path / "broken")
    config = ShardStreamConfig(views=1, patches=3, repeats=1)

    def made():
        return ShardStream(tmp_path / "broken", config, seed=1)

    tar = tmp_path / "broken" / "shard-00001.tar"
    flip(tar, made()._reader.index(tar.name).samples[0].voxels[0] + 30)
    one, two = made(), made()
    forth = [one.sample(index) for index in range(len(one))]
    back = [two.sample(index) for index in reversed(range(len(two)))][::-1]
    assert sum(bool(bad) for _, bad in forth) == 3
    for index, (((a,), bad), ((b,), bad_too)) in enumerate(zip(forth, back, strict=True)):
        ((c,), bad_alone) = made().sample(index)
        assert bad == bad_too == bad_alone
        assert same(a, b)
        assert same(a, c)


@pytest.mark.parametrize("patches", [1, 3])
def test_every_brick_comes_as_often_as_planned_in_every_epoch(shards, patches):
    stream = ShardStream(shards, ShardStreamConfig(repeats=3, patches=patches, mix=2), seed=0)
    assert len(stream) == 3 * patches * stream.manifest.samples
    orders = []
    for epoch in range(2):
        entries = [stream.entry(index) for index in range(epoch * len(stream), (epoch + 1) * len(stream))]
        keys = [stream.brick(entry)[1].key for entry in entries]
        assert set(Counter(keys).values()) == {3 * patches}
        assert set(Counter(entries).values()) == {patches}  # each plan entry once, as many samples as it has
        if patches > 1:
            assert all(len(set(keys[i : i + patches])) == 1 for i in range(0, len(keys), patches))
        orders.append(keys)
    assert orders[0] != orders[1]


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
    made = [load(stream, rank_indices(1, 4, 4, 1, 0, 2), LoaderConfig(workers=w), False, print) for w in (0, 2)]
    loaded = [list(batches) for batches in made]
    assert len(loaded[0]) == 3
    for a, b in zip(*loaded, strict=True):
        assert a.indices == b.indices
        assert a.seeds == b.seeds
        assert torch.equal(a.voxels, b.voxels)
        assert torch.equal(a.matrix, b.matrix)


def test_crops_show_the_scan_where_they_say(shards):
    """A crop resampled by its matrix equals the scan sampled at the same points in mm."""
    stream = ShardStream(shards, ShardStreamConfig(views=1, spatial=STILL), seed=0)
    patch = stream.sample(2)[0][0]
    images, inside, _ = resample(collate([patch]), (8, 8, 8))
    value = images[0, 0, 4, 4, 4] * 2000 - 1000
    index = patch.matrix @ [4, 4, 4, 1]
    low = np.floor(index).astype(int)
    around = patch.voxels[tuple(slice(a, a + 2) for a in low)]
    assert around.min() - 1 <= float(value) <= around.max() + 1
    np.testing.assert_allclose(np.diag(patch.matrix[:, :3]), [1.0, 2 / 1.5, 2 / 1.5])
    assert inside.all()


@pytest.mark.parametrize("source", ["shards", "store"])
def test_the_place_in_mm_is_that_in_the_scan(shards, source):
    """From a crop's place in mm and its matrix follows the corner of its box, and there the scan has its voxels."""
    if source == "shards":
        stream = ShardStream(shards, ShardStreamConfig(), seed=0)
    else:
        stream = StoreStream(shards.parent / "store", (8, 8, 8), CONTRACT, StoreStreamConfig(), seed=0)
    store = open_store(shards.parent / "store")
    corners = set()
    for index in range(6):
        for patch in stream.sample(index)[0]:
            spacing = np.asarray(store.entries[patch.volume].spacing)
            corner = patch.mm / spacing[:, None] - patch.matrix
            np.testing.assert_allclose(corner[:, :3], 0, atol=1e-9)
            start = corner[:, 3].round().astype(int)
            np.testing.assert_allclose(corner[:, 3], start, atol=1e-9)
            spans = [(int(a), int(a + n)) for a, n in zip(start, patch.voxels.shape, strict=True)]
            assert np.array_equal(store.read(patch.volume, spans), patch.voxels)
            corners.add(tuple(start))
    assert len(corners) > 6


def test_case_stream_yields_labels_on_the_voxels_it_centres_on(task):
    ids = sorted(open_store(task).entries)
    config = CaseStreamConfig(foreground=1.0, spatial=STILL)
    stream = CaseStream(task, ids, (8, 8, 8), CONTRACT, config, seed=0)
    for index in range(12):
        ((patch,), _) = stream.sample(index)
        _, _, label = resample(collate([patch]), (8, 8, 8))
        assert label[0, 0, 2:6, 2:6, 2:6].max() > 0
    volumes = [stream.sample(i)[0][0].volume for i in range(6)]
    assert sorted(volumes[:3]) == ids
    assert sorted(volumes[3:]) == ids


def test_case_stream_is_a_function_of_seed_and_index(task):
    ids = sorted(open_store(task).entries)
    streams = [CaseStream(task, ids, (8, 8, 8), CONTRACT, CaseStreamConfig(), seed=1) for _ in range(2)]
    assert same(streams[0].sample(7)[0][0], streams[1].sample(7)[0][0])


def test_a_scan_smaller_than_the_patch_is_shown_whole(task):
    ids = sorted(open_store(task).entries)
    stream = CaseStream(task, ids, (64, 64, 64), CONTRACT, CaseStreamConfig(spatial=STILL), seed=0)
    ((patch,), _) = stream.sample(0)
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
    for kind in (ShardStreamConfig, StoreStreamConfig):
        with pytest.raises(ConfigError, match="stream.repeats must be positive and at most"):
            kind(repeats=float("inf"))
    with pytest.raises(ConfigError, match="stream.foreground"):
        CaseStreamConfig(foreground=1.5)
    assert dataclasses.replace(ShardStreamConfig(), views=1).views == 1


def test_scans_beyond_the_cache_give_the_same_patches(task):
    ids = sorted(open_store(task).entries)
    for index in range(6):
        one, two = (
            CaseStream(task, ids, (8, 8, 8), CONTRACT, CaseStreamConfig(cache_gb=gb), seed=1).sample(index)[0][0]
            for gb in (0.0, 1.0)
        )
        assert same(one, two)
        assert np.array_equal(one.label, two.label)


def test_stopped_and_resized_runs_deliver_what_an_undisturbed_one_does(shards):
    """2 ranks with 2 workers, then 3 ranks, then 1: every sample once, in the order of the global index."""
    stream = ShardStream(shards, ShardStreamConfig(views=1, repeats=1), seed=5)
    batch, steps = 6, -(-len(stream) // 6)
    whole = [stream.sample(index)[0][0] for index in range(batch * steps)]
    assert len({patch.volume for patch in whole}) == 5
    seen, start = [], 0
    for stop, world, workers in ((2, 2, 2), (3, 3, 0), (steps, 1, 1)):
        ranks = [
            load(stream, rank_indices(start, stop, batch, 1, rank, world), LoaderConfig(workers=workers), False, print)
            for rank in range(world)
        ]
        for parts in zip(*ranks, strict=True):
            for part in parts:
                seen += [(i, s, v) for i, s, v in zip(part.indices, part.seeds, part.voxels, strict=True)]
        start = stop
    assert [index for index, _, _ in seen] == list(range(batch * steps))
    for (_, seed, voxels), patch in zip(seen, whole, strict=True):
        assert seed == patch.seed
        z, y, x = patch.voxels.shape
        assert np.array_equal(voxels[0, :z, :y, :x], patch.voxels)


def broken_copy(shards, folder, damage):
    shutil.copytree(shards, folder)
    damage(folder)
    return folder


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["payload", "index", "tar gone", "tar cut"])
def test_a_damaged_shard_is_replaced_alike_every_time_and_named(shards, tmp_path, what):
    def damage(folder):
        tar = folder / "shard-00001.tar"
        match what:
            case "payload":
                sample = ShardStream(folder, ShardStreamConfig(), 0)._reader.index(tar.name).samples[0]
                flip(tar, sample.voxels[0] + 30)
            case "index":
                flip(folder / "shard-00001.index.json", 40)
            case "tar gone":
                tar.unlink()
            case _:
                tar.write_bytes(tar.read_bytes()[:-1024])

    config = ShardStreamConfig(views=1, repeats=1)
    good = ShardStream(shards, config, seed=1)
    made = [ShardStream(broken_copy(shards, tmp_path / str(n), damage), config, seed=1) for n in range(2)]
    replaced = 0
    for index in range(len(good)):
        (patch,), _ = good.sample(index)
        ((one,), bad), ((two,), bad_too) = (stream.sample(index) for stream in made)
        assert same(one, two)
        assert bad == bad_too
        assert same(patch, one) == (not bad)
        assert all(reason == "corrupt" for _, reason in bad)
        replaced += bool(bad)
    hit = good.manifest.shards[1].samples if what != "payload" else 1
    assert replaced == hit


def test_a_folder_where_nothing_can_be_read_stops(shards, tmp_path):
    def damage(folder):
        for tar in folder.glob("*.tar"):
            tar.unlink()

    stream = ShardStream(broken_copy(shards, tmp_path / "all", damage), ShardStreamConfig(), seed=1)
    with pytest.raises(DataError, match="8 choices in a row were damaged"):
        stream.sample(0)


def test_what_a_stream_opens_does_not_grow_with_the_shards(shards, monkeypatch):
    from voxscale.folder import LocalFolder

    opened = []
    read = LocalFolder.read
    monkeypatch.setattr(LocalFolder, "read", lambda self, name: opened.append(name) or read(self, name))
    stream = ShardStream(shards, ShardStreamConfig(), seed=0)
    assert opened == ["manifest.json"]
    stream.sample(0)
    assert len(opened) == 2  # and the index of one tar


@pytest.mark.parametrize("patches", [1, 3])
def test_a_late_position_is_found_as_fast_as_the_first(shards, monkeypatch, patches):
    """One index and the bytes of one brick, wherever a run goes on: nothing is replayed."""
    from voxscale.blobs import Ranged
    from voxscale.folder import LocalFolder

    opened, ranges = [], []
    read, ranged = LocalFolder.read, Ranged.ranges
    monkeypatch.setattr(LocalFolder, "read", lambda self, name: opened.append(name) or read(self, name))
    monkeypatch.setattr(Ranged, "ranges", lambda self, wanted: ranges.extend(wanted) or ranged(self, wanted))
    config = ShardStreamConfig(access="range", patches=patches, mix=2)
    length = len(ShardStream(shards, config, seed=0))
    for index in (0, length // 2 + 1, length - 1, 7 * length + 5, 1000 * length - 1):
        stream = ShardStream(shards, config, seed=0)  # as after a restart
        opened.clear(), ranges.clear()
        assert not stream.sample(index)[1]
        tar, brick = stream.brick(stream.entry(index))
        assert opened == [tar.replace(".tar", ".index.json")]
        assert ranges == [brick.span]


def started(folder, tars, bricks):
    """Files opened, and bytes held, by a stream that starts on so many tars and finds its first brick."""
    groups = [{"main/CT/chest": bricks}] * tars
    first = Order(groups, 4.0, 4, WeightsConfig(), 0).entry(0, 0).unit
    write_shards(folder, groups, lambda _: [("0", "1", "main/CT/chest")] * bricks, {first})
    opened, held = [], [0]
    listening = [True]
    sys.addaudithook(lambda event, args: opened.append(args[0]) if listening[0] and event == "open" else None)
    tracemalloc.start()
    stream = ShardStream(folder, ShardStreamConfig(mix=4), 0)
    stream.entry(0)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    stream.brick(stream.entry(0))
    listening[0] = False
    return [Path(str(name)).name for name in opened if str(folder) in str(name)], held


@pytest.mark.slow
def test_starting_on_ten_thousand_tars_opens_two_files_and_holds_little(tmp_path):
    """No file more than with a hundred; the manifest is held, the same whether its tars have 10 bricks or 200."""
    few, _ = started(tmp_path / "few", 100, 10)
    many, held = started(tmp_path / "many", 10_000, 10)
    _, crowded = started(tmp_path / "crowded", 10_000, 200)
    assert few[0] == many[0] == "manifest.json"
    assert len(few) == len(many) == 2
    assert held < 3000 * 10_000
    assert crowded == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("source", ["shards", "store"])
def test_crops_lie_on_the_body_as_often_as_the_config_says(tmp_path, source):
    """The body is one of 27 cells, in a corner; what is counted are voxels above air in the crops that come."""
    make_store(tmp_path / "store", 2, labelled=False, shape=(96, 96, 96), corner=32)
    pack(tmp_path / "store", tmp_path / "shards", CONTRACT, (8, 8, 8), STRIDES, PackConfig(factor=20, foreground=0.0))
    body = {}
    for share in (1.0, 0.5, 0.0):
        how = {"views": 2, "repeats": 60, "foreground": share}
        stream = (
            store_stream(tmp_path / "store", **how)
            if source == "store"
            else ShardStream(tmp_path / "shards", ShardStreamConfig(**how), 0)
        )
        (loaded,) = load(stream, iter([list(range(100))]), LoaderConfig(), False, print)
        inside = [
            float((voxels[0, : int(z), : int(y), : int(x)] > -600).float().mean())
            for voxels, (z, y, x) in zip(loaded.voxels, loaded.sizes, strict=True)
        ]
        assert len(inside) == 200
        body[share] = np.array(inside)
    assert body[1.0].min() > 0.05
    assert body[1.0].mean() > 0.6
    assert body[0.0].mean() < 0.1
    assert (body[0.0] < 0.05).mean() > 0.8  # without the option most show air alone
    assert abs((body[0.5] > 0.05).mean() - (0.5 + 0.5 * (body[0.0] > 0.05).mean())) < 0.1


def test_streams_can_go_to_other_processes(shards, store):
    for stream in (ShardStream(shards, ShardStreamConfig(), 0), store_stream(store)):
        before = stream.sample(3)[0]
        again = pickle.loads(pickle.dumps(stream))  # our own bytes
        assert all(same(a, b) for a, b in zip(before, again.sample(3)[0], strict=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    make_store(folder / "store", 4, labelled=False, shape=(50, 60, 44))
    return folder / "store"


def store_stream(path, seed=0, **how):
    return StoreStream(path, (8, 8, 8), CONTRACT, StoreStreamConfig(**how), seed)


def test_boxes_of_a_store_lie_where_they_say(store):
    stream = store_stream(store, views=2, spatial=STILL)
    opened = open_store(store)
    volumes = Counter()
    for index in range(len(stream)):
        for patch in stream.sample(index)[0]:
            whole = opened.read(patch.volume)
            corner = np.argwhere(
                np.lib.stride_tricks.sliding_window_view(whole, patch.voxels.shape)[..., 0, 0, 0]
                == patch.voxels[0, 0, 0]
            )
            assert any(
                np.array_equal(
                    whole[tuple(slice(a, a + n) for a, n in zip(c, patch.voxels.shape, strict=True))], patch.voxels
                )
                for c in corner
            )
            volumes[patch.volume] += 1
    assert set(volumes.values()) == {8}  # 4 repeats of 2 views


def test_boxes_on_the_body_are_centred_where_the_index_knows_body():
    body = np.zeros((100, 40, 70), bool)
    body[64:96, 32:, :32] = True
    occupancy = Occupancy.measure(body)
    generator = np.random.default_rng(0)
    centres = np.array([on_body(generator, occupancy, body.shape, (1, 1, 1)) for _ in range(200)])
    assert (centres.min(axis=0) >= [63.5, 31.5, 0]).all()
    assert (centres.max(axis=0) <= [95.5, 39, 31.5]).all()
    wide = np.array([on_body(generator, occupancy, body.shape, (50, 50, 50)) for _ in range(50)])
    assert (wide[:, 1] == 19.5).all()  # shorter than the box: centred
    assert wide[:, 0].max() <= 99 - 24.5
    nothing = Occupancy.measure(np.zeros((40, 40, 40), bool))
    assert len(on_body(generator, nothing, (40, 40, 40), (8, 8, 8))) == 3


def test_a_damaged_scan_is_replaced(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    keys = sorted(open_store(store).entries)
    flip(next(p for p in (tmp_path / "store" / keys[0] / "0" / "c").rglob("*") if p.is_file()), 60)
    text = (tmp_path / "store" / keys[1] / "zarr.json").read_text()
    (tmp_path / "store" / keys[1] / "zarr.json").write_text(text.replace('"slope": 1.0', '"slope": 2.0'))
    stream = store_stream(tmp_path / "store", views=1)
    bad = [stream.sample(index)[1] for index in range(len(stream))]
    assert {volume for each in bad for volume, _ in each} == set(keys[:2])


def test_scans_that_a_damaged_part_of_the_index_hides_are_replaced(tmp_path, monkeypatch):
    """A flipped bit in the ids of one row group costs its scans; the stream starts, and the others are as before."""
    for module in ("index", "index_write", "stream.scans"):
        monkeypatch.setattr(f"voxscale.{module}.ROWS", 2)
    make_store(tmp_path / "store", 6, labelled=False)
    index_write.write_index(tmp_path / "store", accepted(tmp_path / "store"))
    stream = store_stream(tmp_path / "store", views=1)
    want = [stream.sample(number)[0][0] for number in range(2 * len(stream))]
    part = tmp_path / "store" / "index" / "part-00000.parquet"
    column = pq.read_metadata(part).row_group(1).column(0)
    assert column.path_in_schema == "id"
    flip(part, (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2)
    found = [[store_stream(tmp_path / "store", views=1).sample(n) for n in range(len(want))] for _ in range(2)]
    hidden = {f"{number:016x}" for number in (2, 3)}
    for patch, ((one,), bad), ((two,), bad_too) in zip(want, *found, strict=True):
        assert same(one, two)
        assert bad == bad_too
        if patch.volume in hidden:
            assert bad[0] == ("", "corrupt")
            assert one.volume not in hidden
        else:
            assert (same(patch, one), bad) == (True, [])


def test_what_a_stream_of_scans_refuses(tmp_path):
    make_store(tmp_path / "store", 0, labelled=False)
    with pytest.raises(DataError, match="at least one accepted volume"):
        store_stream(tmp_path / "store")
    for values in ({"views": 0}, {"repeats": 0}, {"mix": 0}, {"foreground": 1.5}):
        with pytest.raises(ConfigError, match="stream."):
            StoreStreamConfig(**values)
    for values in ({"temperature": 2.0}, {"factors": {"CT": -1.0}}):
        with pytest.raises(ConfigError, match="weights."):
            WeightsConfig(**values)


def test_held_out_people_are_not_trained_on(tmp_path):
    make_store(tmp_path / "store", 8, labelled=False, shape=(50, 60, 44))
    how = PackConfig(factor=1.25, shard_mb=1, holdout=0.4)
    pack(tmp_path / "store", tmp_path / "shards", CONTRACT, (8, 8, 8), STRIDES, how)
    seen = {}
    for split in ("train", "holdout"):
        stream = ShardStream(tmp_path / "shards", ShardStreamConfig(views=1, repeats=1, split=split), 0)
        seen[split] = {stream.sample(index)[0][0].volume for index in range(len(stream))}
    assert not seen["train"] & seen["holdout"]
    assert len(seen["train"] | seen["holdout"]) == 8
    pack(tmp_path / "store", tmp_path / "all", CONTRACT, (8, 8, 8), STRIDES, PackConfig(factor=1.25))
    with pytest.raises(DataError, match="split must be one that the shards have"):
        ShardStream(tmp_path / "all", ShardStreamConfig(split="holdout"), 0)


def test_the_cells_of_a_brick_are_those_of_its_scan_and_crops_fall_on_them():
    """A body in one corner of the scan; a brick that begins within a cell; draws by brute force against the mask."""
    body = np.zeros((100, 96, 90), bool)
    body[64:96, 32:64, :40] = True
    occupancy = Occupancy.measure(body)
    start, shape = (48, 40, 16), (52, 50, 60)
    cells = tuple(slice(a // c, -(-(a + n) // c)) for a, n, c in zip(start, shape, occupancy.cell, strict=True))
    part, lead = occupancy.part(cells), tuple(a % c for a, c in zip(start, occupancy.cell, strict=True))
    assert np.array_equal(part.decode(), occupancy.decode()[cells])
    generator = np.random.default_rng(0)
    centres = np.array([on_body(generator, part, shape, (1, 1, 1), lead) for _ in range(400)]) + start
    known = occupancy.decode()
    for centre in centres:
        voxel = np.clip(np.round(centre), 0, np.array(body.shape) - 1).astype(int)
        assert known[tuple(voxel // occupancy.cell)] > 0
    assert (centres >= np.array(start) - 0.5).all()
    assert (centres <= np.array(start) + shape - 0.5).all()
    first = (centres[:, 2] < 32).mean()  # 16 of the 24 voxels of body along x in the brick lie in the first cell
    assert abs(first - 16 / 24) < 0.08


def test_the_share_of_crops_on_the_body_is_that_of_the_config(shards, monkeypatch):
    from voxscale.stream import bricks

    drawn = []
    monkeypatch.setattr(bricks, "on_body", lambda *args: drawn.append(1) or on_body(*args))
    for share in (0.0, 0.4, 1.0):
        drawn.clear()
        stream = ShardStream(shards, ShardStreamConfig(views=2, repeats=3, foreground=share), 0)
        for index in range(len(stream)):
            stream.sample(index)
        assert abs(len(drawn) / (2 * len(stream)) - share) < 0.12
    with pytest.raises(ConfigError, match="stream.foreground"):
        ShardStreamConfig(foreground=2.0)
