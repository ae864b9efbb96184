"""Graphs of samples that look alike: the plan stays a plan, and neighbours meet at any number of ranks."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_tars import write_shards
from tests_stores import make_store

from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.seed import rng
from voxscale.stream import AlikeConfig, ShardStream, ShardStreamConfig, StoreStream, StoreStreamConfig, rank_indices
from voxscale.stream.alike import Graphs, by_graphs
from voxscale.stream.epoch import Order
from voxscale.stream.weights import WeightsConfig

names = st.sampled_from(["a/CT/chest", "a/MR/head", "b/CT/chest"])
units = st.lists(st.dictionaries(names, st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=12)
sizes, runs = st.sampled_from([2, 5, 16]), st.integers(1, 5)
GROUP = 16
KINDS = ("a/CT/chest", "a/MR/head", "b/CT/chest")
TARS, SCANS, BRICKS = 24, 6, 8


def entries(order, epoch):
    return [order.entry(epoch, place) for place in range(order.length)]


@settings(max_examples=60, deadline=None)
@given(units, sizes, runs, st.integers(1, 5), st.sampled_from([1.0, 2.5]), st.booleans(), st.integers(0, 3))
def test_every_entry_of_a_plan_comes_once_and_an_epoch_is_whole_graphs(units, size, run, mix, repeats, apart, epoch):
    graphs = Graphs(size, run, apart)
    one, two = (Order(units, repeats, mix, WeightsConfig(), 3, graphs) for _ in range(2))
    found = entries(one, epoch)
    assert found == [two.entry(epoch, place) for place in reversed(range(two.length))][::-1]
    total = sum(sum(unit.values()) for unit in units) * repeats
    assert one.length == max(1, round(total / size)) * size
    assert len(set(found)) == len(found)
    bricks = Counter((e.unit, e.group, e.place) for e in found)
    assert all(place < units[unit][one.groups[kind]] for unit, kind, place in bricks)
    expected = repeats * one.length / total
    assert all(np.floor(expected) - 1 <= n <= np.ceil(expected) + 1 for n in bricks.values())
    if expected >= 1:
        assert len(bricks) == sum(sum(unit.values()) for unit in units)


@given(st.integers(1, 40), sizes, runs, st.integers(1, 4), st.booleans())
def test_the_plan_is_that_of_an_even_shuffle_in_another_order(tars, size, run, mix, apart):
    units = [{"a/CT/chest": 2 * size, "a/MR/head": size}] * tars
    even = Order(units, 2.0, mix, WeightsConfig(), 5)
    alike = Order(units, 2.0, mix, WeightsConfig(), 5, Graphs(size, run, apart))
    assert even.length == alike.length
    starts = range(0, even.length, mix * 6 * size)  # of blocks, which hold the same units
    for start in starts:
        here = range(start, min(start + mix * 6 * size, even.length))
        one, two = ([order.entry(1, place) for place in here] for order in (even, alike))
        assert Counter(one) == Counter(two)
        assert one != two


@given(st.integers(0, 60), st.integers(0, 70), sizes, runs, st.booleans(), st.integers(0, 5))
def test_rows_are_put_in_another_order_and_nothing_else(count, first, size, run, apart, seed):
    draw = rng(seed, "rows")
    rows = draw.integers(0, 4, (count, 4))
    found = by_graphs(rows, Graphs(size, run, apart), first, rng(seed))
    assert sorted(found.tolist()) == sorted(rows.tolist())
    assert np.array_equal(found, by_graphs(rows[::-1], Graphs(size, run, apart), first, rng(seed)))


def test_neighbours_stand_in_runs_and_not_the_same_ones_in_every_epoch():
    """One tar of 16 bricks shown twice: runs of four follow one another, whichever order they are in."""
    order = Order([{"a/CT/chest": 16}], 2.0, 1, WeightsConfig(), 0, Graphs(16, 4, showings_apart=True))
    steps, met = Counter(), set()
    for epoch in range(8):
        found = entries(order, epoch)
        steps.update(b.place - a.place for a, b in pairwise(found) if a.repeat == b.repeat)
        met |= {(a.place, b.place) for a, b in pairwise(found) if b.place - a.place == 1}
    assert steps[1] > sum(steps.values()) / 2
    assert len(met) == 15
    scans = Order([{"a/CT/chest": 16}], 4.0, 1, WeightsConfig(), 0, Graphs(16, 4, showings_apart=False))
    found = entries(scans, 0)
    again = sum(a.place == b.place for a, b in pairwise(found))
    assert again > len(found) / 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Tars of six scans of eight bricks, two scans of each kind."""
    folder = tmp_path_factory.mktemp("tars") / "shards"

    def bricks(tar):
        scans = [(f"{tar * SCANS + n:016x}", KINDS[n % 3]) for n in range(SCANS)]
        return [(scan, scan, kind) for scan, kind in scans for _ in range(BRICKS)]

    groups = [dict.fromkeys(KINDS, SCANS // 3 * BRICKS)] * TARS
    write_shards(folder, groups, bricks, range(TARS))
    return folder


def shares(stream, key):
    """Share of the pairs of a graph of which a key is equal, over an epoch."""
    graphs = np.array(key).reshape(-1, GROUP)
    return np.mean([[a == b for a, b in combinations(graph, 2)] for graph in graphs.tolist()])


def test_bricks_of_one_scan_and_of_one_kind_meet_in_a_graph(shards):
    found = {}
    for name, alike in (("even", AlikeConfig()), ("alike", AlikeConfig(group=GROUP))):
        stream = ShardStream(shards, ShardStreamConfig(alike=alike), seed=1)
        assert len(stream) == 4 * TARS * SCANS * BRICKS
        scans = stream.neighbours(0, len(stream))["subject"]
        kinds = [stream.entry(index).group for index in range(len(stream))]
        bricks = stream.neighbours(0, len(stream))["brick"].reshape(-1, GROUP)
        found[name] = shares(stream, scans), shares(stream, kinds)
        twice = np.mean([len(set(graph)) < GROUP for graph in bricks.tolist()])
        assert twice < 0.2  # a graph seldom shows a brick twice
    assert found["even"][0] < 0.015  # by chance 31 of 4607
    assert found["even"][1] == pytest.approx(1 / 3, abs=0.02)
    assert found["alike"][0] > 0.13  # 4 runs of 4 of one scan each would be 0.2; runs begin anywhere in a scan of 8
    assert found["alike"][1] > 0.98


@pytest.mark.parametrize("world", [1, 2, 4])
def test_graphs_of_a_rank_are_those_of_the_plan_at_any_number_of_ranks(shards, world):
    """Over the border of an epoch too, although 50 batches do not make one."""
    stream = ShardStream(shards, ShardStreamConfig(alike=AlikeConfig(group=GROUP), mix=5), seed=2)
    assert len(stream) % GROUP == 0
    steps, graphs = len(stream) * 3 // 2 // 64, set()
    for rank in range(world):
        for batch in rank_indices(0, steps, 64, 1, rank, world):
            graphs |= {tuple(batch[start : start + GROUP]) for start in range(0, len(batch), GROUP)}
    assert graphs == {tuple(range(start, start + GROUP)) for start in range(0, steps * 64, GROUP)}
    mixed = [len({stream.entry(index).group for index in graph}) > 1 for graph in graphs]
    seams = 3 * 5 * 2  # of kinds within a block and of blocks, in two epochs
    assert sum(mixed) <= seams < len(graphs) / 3


def test_boxes_of_one_scan_meet_where_a_store_is_read(tmp_path):
    make_store(tmp_path / "store", 12, labelled=False)
    found = []
    for group in (1, 8):
        config = StoreStreamConfig(repeats=6.0, alike=AlikeConfig(group=group, run=4))
        stream = StoreStream(tmp_path / "store", (8, 8, 8), InputContract(spacing=(2.0, 2.0, 2.0)), config, 0)
        scans = [stream.volume(index) for index in range(len(stream))]
        assert sorted(Counter(scans).values()) == [6] * 12
        found.append(np.mean([len(set(scans[start : start + 8])) for start in range(0, 72, 8)]))
    assert found[1] < 4.5 < 5.5 < found[0]


def test_bad_config_is_named():
    with pytest.raises(ConfigError, match=r"alike.group must be 1 to 256 samples, not 0"):
        AlikeConfig(group=0)
    with pytest.raises(ConfigError, match=r"alike.run must be at least 1, not 0"):
        AlikeConfig(run=0)
    with pytest.raises(ConfigError, match=r"stream.alike.group must be a multiple of patches, 3, not 16"):
        ShardStreamConfig(patches=3, alike=AlikeConfig(group=16))
