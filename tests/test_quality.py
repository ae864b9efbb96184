import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_stores import make_store

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.seed import rng
from voxscale.store import open_store
from voxscale.stream import ShardStream, ShardStreamConfig, StoreStream, StoreStreamConfig, shuffle_quality
from voxscale.stream.quality import describe, distances, measure

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=40), st.integers(1, 12))
def test_what_is_found_is_what_brute_force_finds(keys, batch):
    found = measure({"a": np.array(keys)}, len(keys), batch, rng(0))
    batch = min(batch, len(keys))
    apart = []
    for here, key in enumerate(keys):
        later = [there for there in range(here + 1, len(keys)) if keys[there] == key >= 0]
        apart += [there - here for there in later[:1]]
    assert ("a" in found.apart) == bool(apart)
    if apart:
        real = found.apart["a"][0]
        assert (real.median, real.low, real.least) == (np.median(apart), np.percentile(apart, 5), min(apart))
    whole = [keys[start : start + batch] for start in range(0, len(keys) - batch + 1, batch)]
    counts = [len({*part} - {-1}) for part in whole]
    assert (found.mixed["a"][0].mean, found.mixed["a"][0].least) == (pytest.approx(np.mean(counts)), min(counts))
    assert (found.samples, found.epoch, found.batch) == (len(keys), len(keys), batch)


def beyond(epoch, shown, distance):
    """Chance that one of several random places of an epoch is further than a distance from the next one."""
    return math.comb(epoch - distance, shown) / math.comb(epoch, shown)


def different(epoch, counts, batch):
    """Expected number of different things among random samples of an epoch."""
    none = [math.comb(epoch - n, batch) / math.comb(epoch, batch) for n in counts]
    return len(counts) - sum(none)


@pytest.mark.parametrize("looked_at", [1.0, 0.125])
def test_the_ideal_is_a_uniform_shuffle_of_the_whole_epoch(looked_at):
    """Against the exact distribution; where a part is looked at, the rest of the epoch is like it."""
    things, shown, batch = 500, 8, 64
    n = things * shown
    epoch = int(n / looked_at)
    keys = np.sort(np.arange(n) % things)  # worst order there is
    real, ideal = measure({"a": keys}, epoch, batch, rng(1)).apart["a"]
    assert (real.median, real.least) == (1, 1)
    assert beyond(epoch, shown, round(ideal.median)) == pytest.approx(0.5, abs=0.03)
    assert beyond(epoch, shown, round(ideal.low)) == pytest.approx(0.95, abs=0.015)
    assert ideal.least < ideal.low / 10  # among 3500 distances, some are tiny
    real, ideal = measure({"a": keys}, epoch, batch, rng(1)).mixed["a"]
    assert (real.mean, real.least) == (pytest.approx(8, abs=1.1), 8)
    assert ideal.mean == pytest.approx(different(epoch, [shown] * (epoch // shown), batch), rel=0.01)


def test_a_uniform_shuffle_is_found_to_be_as_good_as_the_ideal():
    counts = rng(0, "counts").integers(1, 30, 300)
    keys = rng(0, "shuffle").permutation(np.repeat(np.arange(300), counts))
    found = measure({"a": keys}, len(keys), 50, rng(0, "ideal"))
    (real, ideal), (mix, best) = found.apart["a"], found.mixed["a"]
    assert real.median == pytest.approx(ideal.median, rel=0.06)
    assert real.low == pytest.approx(ideal.low, rel=0.3)
    assert mix.mean == pytest.approx(best.mean, rel=0.02)
    assert mix.mean == pytest.approx(different(len(keys), counts.tolist(), 50), rel=0.02)


def test_distances_follow_places_and_not_the_order_in_which_samples_are_given():
    assert sorted(distances(np.array([7, 7, 7, 3]), np.array([90, 10, 11, 50])).tolist()) == [1, 79]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store", 7, labelled=False, shape=(50, 60, 44))
    pack(folder / "store", folder / "shards", CONTRACT, (8, 8, 8), STRIDES, PackConfig(factor=1.25, shard_mb=1))
    return folder


@pytest.mark.parametrize("patches", [1, 3])
def test_a_stream_of_shards_tells_what_its_samples_show(data, patches):
    stream = ShardStream(data / "shards", ShardStreamConfig(patches=patches, mix=2, views=1), seed=4)
    subjects = {key: entry.subject for key, entry in open_store(data / "store").entries.items()}
    keys = stream.neighbours(1, len(stream))
    shown = [stream.entry(len(stream) + n) for n in range(len(stream))]
    assert all(len(key) == len(stream) for key in keys.values())
    places = [stream.brick(entry) for entry in shown]
    whole = {
        "tar": [tar for tar, _ in places],
        "brick": [brick.key for _, brick in places],
        "subject": [subjects[stream.sample(len(stream) + n)[0][0].volume] for n in range(len(stream))],
    }
    for kind, named in whole.items():
        assert len({*zip(keys[kind].tolist(), named, strict=True)}) == len({*named}) == len({*keys[kind].tolist()})
    found = shuffle_quality(stream, 4)
    assert found.apart["brick"][0].least == 1 if patches > 1 else found.apart["brick"][0].least >= 1
    assert found.mixed["subject"][0].mean <= min(7, 4)
    first = stream.order.rows(0, 1)
    assert len(first) < stream.order.length  # one block of two tars
    assert [stream.order.entry(0, n).unit for n in range(len(first))] == first[:, 0].tolist()


def test_a_stream_of_scans_tells_what_its_samples_show(data):
    stream = StoreStream(data / "store", (8, 8, 8), CONTRACT, StoreStreamConfig(views=1), 4)
    keys = stream.neighbours(0, 1)
    named = [stream.volume(n) for n in range(len(stream))]
    assert len({*zip(keys["scan"].tolist(), named, strict=True)}) == len({*named}) == 7
    assert keys["scan"].max() == keys["subject"].max() == 6  # one scan of each person
    assert np.array_equal(np.unique(keys["scan"], return_inverse=True)[1], keys["scan"])
    assert set(keys["run"].tolist()) == {0}
    assert shuffle_quality(stream, 5).mixed["subject"][0].mean == shuffle_quality(stream, 5).mixed["scan"][0].mean


def test_people_of_a_damaged_tar_are_not_known_and_nothing_stops(data, tmp_path):
    shutil.copytree(data / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "shard-00000.index.json").write_text("{}")
    stream = ShardStream(tmp_path / "shards", ShardStreamConfig(), seed=0)
    keys = stream.neighbours(0, len(stream))
    assert np.array_equal(keys["subject"] < 0, keys["tar"] == 0)
    assert (keys["tar"] == 0).any()
    assert shuffle_quality(stream, 4).apart["subject"]


def test_one_line_says_it_all():
    keys = {"brick": np.array([0, 1, 0, 2, 3, 1]), "tar": np.arange(6)}
    line = describe(measure(keys, 600, 3, rng(0)))
    assert "a batch of 3 mixes 2.5 bricks (at least 2; ideal 3.0), 3.0 tars" in line
    assert "the same brick 3, 5 % within 2 (ideal" in line
    assert line.endswith("from 6 of the 600 samples of an epoch")
    assert "\n" not in line
    assert "never" in describe(measure({"tar": np.arange(6)}, 6, 3, rng(0)))
    with pytest.raises(ConfigError, match="loop.batch"):
        measure(keys, 600, 0, rng(0))
