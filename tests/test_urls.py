"""Stores, shards and streams behind `s3://` URLs, from a real server on loopback."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from object_store import inside, requests
from tests_stores import make_store

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from data_prep.part import Part
from data_prep.plan import plan_task
from voxscale.contract import InputContract
from voxscale.errors import DataError, StorageError
from voxscale.loader import LoaderConfig, load
from voxscale.shards import open_manifest
from voxscale.store import open_store
from voxscale.stream import ShardStream, ShardStreamConfig, StoreStream, StoreStreamConfig, rank_indices

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
PATCH = (8, 8, 8)
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
SMALL = PackConfig(factor=1.25, shard_mb=1)
COUNT = 5


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    make_store(folder / "store", COUNT, labelled=False, shape=(50, 60, 44))
    pack(folder / "store", folder / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    return folder


@pytest.fixture(scope="module")
def store(local, s3):
    return s3.upload(local / "store")


@pytest.fixture(scope="module")
def shards(local, s3):
    return s3.upload(local / "shards")


def shard_stream(path, **how):
    return ShardStream(path, ShardStreamConfig(**({"repeats": 1} | how)), seed=3)


def store_stream(path, **how):
    return StoreStream(path, PATCH, CONTRACT, StoreStreamConfig(**({"repeats": 1} | how)), seed=3)


def same(one, two):
    return all(
        np.array_equal(a.voxels, b.voxels)
        and np.array_equal(a.matrix, b.matrix)
        and (a.seed, a.volume) == (b.seed, b.volume)
        for a, b in zip(one, two, strict=True)
    )


def test_a_store_reads_the_same_from_a_url(local, store):
    here, there = open_store(local / "store"), open_store(store)
    assert dict(here.entries) == dict(there.entries)
    for key in here.entries:
        assert np.array_equal(here.read(key), there.read(key))
        box = [(3, 20), (10, 50), (0, 7)]
        assert np.array_equal(here.read(key, box), there.read(key, box))
        assert here.entry(key) == there.entry(key)


@pytest.mark.parametrize("how", [{"views": 1}, {"views": 2}, {"views": 2, "patches": 3}])
def test_streams_from_urls_are_those_from_folders(local, store, shards, how):
    for here, there in (
        (shard_stream(local / "shards", **how), shard_stream(shards, **how)),
        *([] if "patches" in how else [(store_stream(local / "store", **how), store_stream(store, **how))]),
    ):
        assert len(here) == len(there)
        for index in range(len(here)):
            (one, bad), (two, bad_too) = here.sample(index), there.sample(index)
            assert same(one, two)
            assert not bad + bad_too


def test_a_sample_from_shards_costs_one_request_once_its_index_is_known(shards):
    stream = shard_stream(shards, patches=2)
    with requests() as made:
        for index in range(len(stream)):
            stream.sample(index)
    tars = [key for _, key, _ in made if key.endswith(".tar")]
    indexes = [key for _, key, _ in made if key.endswith(".index.json")]
    assert len(tars) + len(indexes) == len(made)
    assert {method for method, _, _ in made} == {"get_object"}
    assert len(tars) == len(stream) // 2  # one a brick, for two samples of two views
    assert sorted(indexes) == sorted({*indexes})


def test_a_sample_from_a_store_costs_few_requests(store):
    stream = store_stream(store, views=2)
    key = stream.volume(0)
    with requests() as made:
        stream.sample(0)
    kinds = [name.rpartition("/" + key + "/")[2] for _, name, _ in made]
    assert kinds.count("zarr.json") == 1  # its entry
    assert len([1 for _, _, part in made if part.startswith("bytes=-")]) == 1  # the index of its only shard
    assert len(made) <= 4  # and one range of chunks for each view
    assert {method for method, _, _ in made} == {"get_object"}


def test_opening_costs_few_requests_however_many_scans_there_are(store, shards):
    with requests() as made:
        open_store(store)
    assert len(made) <= 4
    with requests() as made:
        ShardStream(shards, ShardStreamConfig(), 0)
    assert len(made) == 1


@pytest.mark.slow
def test_workers_have_connections_of_their_own(local, shards, store):
    for here, there in (
        (shard_stream(local / "shards"), shard_stream(shards)),
        (store_stream(local / "store"), store_stream(store)),
    ):
        there.sample(0)  # this process's own threads and connections are there
        events = []
        indices = rank_indices(0, len(here) // 2, 2, 1, 0, 1)
        batches = list(load(there, indices, LoaderConfig(workers=2, patience_s=60, slow_s=60), False, events.append))
        assert not events
        assert [seed for batch in batches for seed in batch.seeds] == [
            patch.seed for index in range(2 * (len(here) // 2)) for patch in here.sample(index)[0]
        ]


def changed(s3, local, name, change):
    url = s3.upload(local)
    system, path = s3.file_system(), f"{inside(url)}/{name}"
    data = change(system.cat_file(path))
    if data is None:
        system.rm_file(path)
    else:
        system.pipe_file(path, data)
    return url


def flipped(place):
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [lambda data: data[: len(data) // 2], lambda data: data[:700], flipped(600), lambda _: b"", lambda _: None],
)
def test_damaged_tars_are_replaced_alike(s3, local, change):
    where = changed(s3, local / "shards", "shard-00001.tar", change)
    good, bad = shard_stream(local / "shards", views=1), shard_stream(where, views=1)
    found = [bad.sample(index) for index in range(len(bad))]
    hit = [index for index, (_, replaced) in enumerate(found) if replaced]
    assert hit
    assert {reason for _, replaced in found for _, reason in replaced} == {"corrupt"}
    for index, (patches, _) in enumerate(found):
        assert same(patches, good.sample(index)[0]) == (index not in hit)
    again = shard_stream(where, views=1)
    assert all(same(found[index][0], again.sample(index)[0]) for index in hit)


@pytest.mark.parametrize("change", [lambda data: data[:-100], flipped(60), lambda _: b"", lambda _: None])
def test_damaged_shards_of_a_store_are_replaced(s3, local, change):
    key = sorted(open_store(local / "store").entries)[1]
    file = next(p for p in (local / "store" / key / "0" / "c").rglob("*") if p.is_file())
    where = changed(s3, local / "store", str(file.relative_to(local / "store")), change)
    stream = store_stream(where, views=1)
    found = [stream.sample(index)[1] for index in range(len(stream))]
    assert {pair for bad in found for pair in bad} == {(key, "corrupt")}


def test_a_changed_index_or_manifest_is_noticed(s3, local):
    where = changed(s3, local / "shards", "shard-00001.index.json", flipped(40))
    stream = shard_stream(where, views=1)
    assert sum(bool(stream.sample(index)[1]) for index in range(len(stream))) == stream.manifest.shards[1].samples
    with pytest.raises(DataError, match="manifest.json must be as it was written"):
        open_manifest(changed(s3, local / "shards", "manifest.json", lambda data: data[:-40]))
    with pytest.raises(DataError, match="run data_prep pack to the end"):
        open_manifest(changed(s3, local / "shards", "manifest.json", lambda _: None))
    with pytest.raises(DataError, match="must be a store"):
        open_store(s3.folder())


def test_a_server_that_goes_away_stops_the_stream_instead_of_replacing_everything(s3, local, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3fs.S3FileSystem.clear_instance_cache()
    url = s3.upload(local / "shards")
    streams = shard_stream(url), store_stream(s3.upload(local / "store"))
    try:
        s3.gate.shut()
        for stream in streams:
            with pytest.raises(StorageError, match="must answer") as error:
                stream.sample(0)
            assert not [word for word in ("bucket", "127.0.0.1", "secret") if word in str(error.value)]
        with pytest.raises(DataError, match="must answer") as told:
            list(load(streams[0], iter([[0]]), LoaderConfig(workers=1), False, print))
        assert told.value.reason == "unreachable"
    finally:
        s3.gate.open(s3.port)
        s3fs.S3FileSystem.clear_instance_cache()
    assert shard_stream(url).sample(0)


def test_packing_to_a_url_writes_the_same_bytes(s3, local, store):
    url = s3.folder()
    assert pack(store, url, CONTRACT, PATCH, STRIDES, SMALL) == open_manifest(local / "shards")
    wanted = {p.name: p.read_bytes() for p in (local / "shards").glob("[!.]*") if p.is_file()}
    assert s3.objects(url) == wanted
    with requests() as made:
        pack(store, url, CONTRACT, PATCH, STRIDES, SMALL)
    assert [key.rpartition("/")[2] for method, key, _ in made if "put" in method] == ["manifest.json"]


def test_parts_write_to_a_url_what_one_writes(s3, local, store):
    url = s3.folder()
    for number in (2, 1):
        assert pack(store, url, CONTRACT, PATCH, STRIDES, SMALL, part=Part(number, 2)) is None
        with pytest.raises(DataError, match="run data_prep pack to the end"):
            open_manifest(url)
    assert pack(store, url, CONTRACT, PATCH, STRIDES, SMALL) == open_manifest(local / "shards")


def test_packing_from_a_store_costs_few_requests(s3, store, local):
    with requests() as made:
        manifest = pack(store, local / "again", CONTRACT, PATCH, STRIDES, SMALL)
    read = [key for _, key, _ in made if "/c/" in key]
    assert len(read) <= COUNT + manifest.samples  # each shard's index, and one range of each brick


KILLED = """
import os, signal, sys
from pathlib import Path
import test_urls as t
from voxscale.remote import RemoteFolder

left = int(sys.argv[3])

def counted(name):
    operation = getattr(RemoteFolder, name)
    def call(self, *args):
        global left
        operation(self, *args)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return call

for name in ("write", "put"):
    setattr(RemoteFolder, name, counted(name))
t.pack(Path(sys.argv[1]), Path(sys.argv[2]), t.CONTRACT, t.PATCH, t.STRIDES, t.SMALL)
"""


@pytest.mark.slow
def test_killed_packing_goes_on_and_ends_with_the_same_bytes(s3, local, store):
    """SIGKILL after the first tar, before its index; after the second tar's index, before the manifest."""
    url, root = s3.folder(), Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    wanted = {p.name: p.read_bytes() for p in (local / "shards").glob("[!.]*") if p.is_file()}
    for writes, there in ((2, {"groups.json", "shard-00000.tar"}), (4, set(wanted) - {"manifest.json"})):
        command = [sys.executable, "-c", KILLED, f"s3://{inside(store)}", f"s3://{inside(url)}", str(writes)]
        assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
        assert set(s3.objects(url)) == there
    assert pack(store, url, CONTRACT, PATCH, STRIDES, SMALL) == open_manifest(local / "shards")
    assert s3.objects(url) == wanted


def test_a_plan_is_stamped_into_a_store_behind_a_url(s3, local):
    url = s3.upload(local / "store")
    plan = plan_task(url, 16**3)
    assert open_store(url).contract == plan.contract


def test_a_run_knows_its_shards_by_the_bytes_of_their_manifest(local, shards):
    wanted = hashlib.sha256((local / "shards" / "manifest.json").read_bytes()).hexdigest()
    assert shard_stream(shards).manifest_sha256 == shard_stream(local / "shards").manifest_sha256 == wanted
