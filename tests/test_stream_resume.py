"""Stopped anywhere and started again at any size, both sources deliver what an undisturbed run does, in its order."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests_stores import make_store

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.loader import LoaderConfig, load
from voxscale.shards import open_manifest
from voxscale.store import open_store
from voxscale.stream import (
    AlikeConfig,
    Curriculum,
    ShardStream,
    ShardStreamConfig,
    StoreStream,
    StoreStreamConfig,
    WeightsConfig,
    WideCrops,
    rank_indices,
)
from voxscale.stream.weights import group_weights

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
PATCH = (8, 8, 8)
WEIGHTS = (WeightsConfig(), WeightsConfig(temperature=0.0), WeightsConfig(temperature=0.5, factors={"two": 3.0}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store", 7, labelled=False, shape=(50, 60, 44), datasets=("one", "one", "two"))
    pack(folder / "store", folder / "shards", CONTRACT, PATCH, STRIDES, PackConfig(factor=1.25, shard_mb=1, levels=3))
    return folder


@dataclass(frozen=True)
class Source:
    """What is read, and how."""

    kind: str
    repeats: float
    mix: int
    patches: int
    weights: int
    seed: int
    group: int = 1
    wider: int = 0

    def open(self, folder):
        """A new stream, as a new process makes it."""
        how = {"views": 1, "repeats": self.repeats, "mix": self.mix, "weights": WEIGHTS[self.weights]}
        how["alike"] = AlikeConfig(group=self.group)
        # Levels of samples move within the first steps; the run is planned to be equally long in every stay.
        wide = WideCrops(0, self.wider, Curriculum((0.3, 0.3, 0.4), 0.3), 6, 8) if self.wider else None
        if self.kind == "shards":
            return ShardStream(folder / "shards", ShardStreamConfig(**how, patches=self.patches), self.seed, wide)
        return StoreStream(folder / "store", PATCH, CONTRACT, StoreStreamConfig(**how), self.seed, wide)


@dataclass(frozen=True)
class Stay:
    """Some steps of a run on some ranks, and micro-batches of a step that was not finished."""

    steps: int
    world: int
    workers: int
    more: int


def stays(most_steps, worlds, workers):
    return st.lists(
        st.builds(Stay, st.integers(0, most_steps), st.sampled_from(worlds), workers, st.integers(0, 3)),
        min_size=1,
        max_size=4,
    )


sources = st.builds(
    Source,
    kind=st.sampled_from(["shards", "store"]),
    repeats=st.sampled_from([0.5, 1.0, 2.0]),
    mix=st.integers(1, 3),
    patches=st.sampled_from([1, 2]),
    weights=st.integers(0, 2),
    seed=st.integers(0, 3),
    group=st.sampled_from([1, 4]),
    wider=st.sampled_from([0, 2]),
)


def told(batch):
    """Index, seed, and checksums of place and voxels of each sample of a batch with one view."""
    rows = zip(batch.indices, batch.seeds, batch.matrix, batch.voxels, batch.sizes, strict=True)
    for index, seed, matrix, voxels, size in rows:
        z, y, x = (int(n) for n in size)
        yield index, seed, crc32(matrix.numpy().tobytes()), crc32(voxels[0, :z, :y, :x].numpy().tobytes())


def run(folder, source, batch, accumulate, plan, steps):
    """What is delivered in finished steps, by a run that is stopped as planned and then goes on to the end."""
    seen, start = [], 0
    for stay in [*plan, Stay(steps, 1, 0, 0)]:
        stop = min(start + stay.steps, steps)
        ranks = []
        for rank in range(stay.world):
            indices = rank_indices(start, steps, batch, accumulate, rank, stay.world)
            config = LoaderConfig(workers=stay.workers)
            loaded = load(source.open(folder), indices, config, False, lambda event: pytest.fail(str(event)))
            ranks.append(list(islice(loaded, (stop - start) * accumulate)))
            list(islice(loaded, stay.more if stop < steps else 0))  # of a step whose end nobody saw
            loaded.close()
        for parts in zip(*ranks, strict=True):
            seen += [row for part in parts for row in told(part)]
        start = stop
    return seen


@cache
def undisturbed(folder, source, samples):
    """The first samples of a stream by their numbers, in one go."""
    stream = source.open(folder)
    patches = [stream.sample(index)[0][0] for index in range(samples)]
    rows = [(p.index, p.seed, crc32(p.matrix.astype("float32").tobytes()), crc32(p.voxels.tobytes())) for p in patches]
    return rows, [patch.volume for patch in patches]


def check_epoch(folder, source, volumes):
    """Each scan of one whole epoch as often as its weight says, by a count of its own from manifest and store."""
    entries = open_store(folder / "store").entries
    if source.kind == "shards":
        stream = source.open(folder)
        bricks = Counter()
        for line in open_manifest(folder / "shards").shards:
            bricks.update(sample.volume for sample in stream._reader.index(line.name).samples)
    else:
        bricks = Counter(dict.fromkeys(entries, 1))
    counts = Counter()
    for key, n in bricks.items():
        counts[f"{entries[key].dataset}/CT/unknown"] += n
    weights = group_weights(counts, WEIGHTS[source.weights])
    patches = source.patches if source.kind == "shards" else 1
    found = Counter(volumes)
    for key, n in bricks.items():
        each = weights[f"{entries[key].dataset}/CT/unknown"] * source.repeats
        assert n * (math.floor(each) - 1) * patches <= found[key] <= n * (math.ceil(each) + 1) * patches
    return found


def compare(folder, source, batch, accumulate, plan, epochs):
    stream = source.open(folder)
    steps = -(-epochs * len(stream) // batch)
    seen = run(folder, source, batch, accumulate, plan, steps)
    whole, volumes = undisturbed(folder, source, steps * batch)
    assert seen == whole  # numbers, seeds, places and voxels, in one order
    assert [row[0] for row in seen] == list(range(steps * batch))
    for epoch in range(epochs):
        here = slice(epoch * len(stream), (epoch + 1) * len(stream))
        found = check_epoch(folder, source, volumes[here])
        assert found.total() == len(stream)
        assert len({row[1] for row in seen[here]}) == len(stream)  # every plan entry has boxes of its own


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources, st.sampled_from([6, 12]), st.integers(1, 2), stays(5, (1, 2, 3), st.just(0)), st.integers(1, 2))
def test_a_run_that_is_stopped_and_resized_anywhere_delivers_what_an_undisturbed_one_does(
    data, source, batch, accumulate, plan, epochs
):
    """Over the borders of epochs, with all weights and repeats; a step that is cut is done again from its start."""
    if batch // accumulate % 6:
        accumulate = 1
    compare(data, source, batch, accumulate, plan, epochs)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources, stays(3, (1, 2), st.integers(1, 3)))
def test_with_loading_processes_as_well(data, source, plan):
    compare(data, source, 6, 1, plan, 1)


def test_the_comparison_notices_a_sample_that_is_lost_twice_or_out_of_order(data):
    source = Source("shards", 1.0, 2, 1, 0, 0)
    steps = -(-len(source.open(data)) // 6)
    whole, _ = undisturbed(data, source, steps * 6)
    seen = run(data, source, 6, 1, [Stay(1, 2, 0, 1), Stay(1, 3, 0, 0)], steps)
    assert seen == whole
    for wrong in (seen[:-1], [*seen, seen[-1]], [seen[1], seen[0], *seen[2:]]):
        assert wrong != whole
    other = undisturbed(data, Source("shards", 1.0, 2, 1, 0, 1), steps * 6)[0]
    assert all(a[1:] != b[1:] for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(6, 1, 4), (6, 2, 2), (5, 5, 2), (4, 3, 1)])
def test_a_batch_that_ranks_cannot_divide_is_refused(batch, accumulate, world):
    with pytest.raises(ConfigError, match=rf"loop.batch must be a multiple of {accumulate * world} .*, not {batch}"):
        rank_indices(0, 1, batch, accumulate, 0, world)
