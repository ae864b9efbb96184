"""Scans that are added to a finished store and its shards: only they are read, and nothing old is written again."""

import shutil

import pyarrow.parquet as pq
import pytest
from ingested import SMALL, bytes_of, nifti, with_key_of
from object_store import inside, requests

from data_prep import reading
from data_prep.ingest import ingest
from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from voxscale import index, index_write
from voxscale.contract import InputContract


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of an index have 4 rows, in row groups of 2."""
    for module in (index, index_write):
        monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr("voxscale.stream.scans.ROWS", 2)
    monkeypatch.setattr("data_prep.choose.ROWS", 2)
    monkeypatch.setattr(index_write, "PART", 4)


def state(folder, pattern):
    """Bytes, inode and time of files."""
    return {p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob(pattern)}


def test_ten_more_scans_cost_ten_reads_and_leave_full_parts_and_tars_alone(tmp_path, monkeypatch):
    read, real = [], reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: read.append(job.key) or real(self, job, now))
    source, store, shards = tmp_path / "in", tmp_path / "store", tmp_path / "shards"
    for number in range(10):
        nifti(source / f"a{number}.nii", number)
    ingest([source], store, SMALL)
    plan = plan_task(store, 8**3, InputContract(spacing=(3.0, 2.0, 2.0)))
    cut = PackConfig(factor=1.25, shard_mb=1)
    pack(store, shards, plan.contract, plan.patch, plan.strides, cut)
    parts, tars, scans = state(store / "index", "part-*"), state(shards, "shard-*"), state(store, "*/zarr.json")
    assert sorted(parts) == [f"part-0000{n}.parquet" for n in range(3)]

    read.clear()
    for number in range(10):
        nifti(source / f"b{number}.nii", 100 + number)
    assert ingest([source], store, SMALL).accepted == 20
    assert len(read) == len({*read}) == 10
    now = state(store / "index", "part-*")
    assert len(now) == 5
    assert [name for name in sorted(now) if parts.get(name) == now[name]] == sorted(parts)[:2]  # the full ones
    assert pq.read_metadata(store / "index" / "part-00002.parquet").num_rows == 4
    assert scans.items() <= state(store, "*/zarr.json").items()
    manifest = pack(store, shards, plan.contract, plan.patch, plan.strides, cut)
    assert manifest.volumes == 20
    assert tars.items() < state(shards, "shard-*").items()

    ingest([source], with_key_of(store, tmp_path / "anew"), SMALL)
    shutil.copy(store / "zarr.json", tmp_path / "anew" / "zarr.json")  # which the plan was stamped into
    assert bytes_of(tmp_path / "anew") == bytes_of(store)
    read.clear()
    ingest([source], store, SMALL)
    assert read == []
    assert state(store / "index", "*") == state(store / "index", "*") | now


def modified(s3, url):
    """Bytes and time of every object below a URL."""
    system = s3.file_system()
    return {
        name.removeprefix(f"{inside(url)}/"): (system.cat_file(name), system.info(name)["LastModified"])
        for name in system.find(inside(url))
    }


def test_ten_more_scans_cost_ten_reads_where_store_and_shards_are_behind_urls(s3, tmp_path, monkeypatch):
    """Of old scans no voxel is fetched, of old tars none is written; in a folder the same comes out."""
    read, real = [], reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: read.append(job.key) or real(self, job, now))
    source, store, shards = tmp_path / "in", s3.folder(), s3.folder()
    cut = PackConfig(factor=1.25, shard_mb=1)
    for number in range(10):
        nifti(source / f"a{number}.nii", number)
    ingest([source], store, SMALL, tmp_path / "work")
    plan = plan_task(store, 8**3, InputContract(spacing=(3.0, 2.0, 2.0)))
    pack(store, shards, plan.contract, plan.patch, plan.strides, cut)
    scans, tars = modified(s3, store), modified(s3, shards)
    first = {name.partition("/")[0] for name in scans if "/0/c/" in name}
    assert len(first) == len(read) == 10

    read.clear()
    for number in range(10):
        nifti(source / f"b{number}.nii", 100 + number)
    with requests() as made:
        assert ingest([source], store, SMALL, tmp_path / "work").accepted == 20
    assert len(read) == len({*read}) == 10
    assert not first & {*read}
    asked = {(method, *key.split("/")[-2:]) for method, key, _ in made if first & {*key.split("/")}}
    # By their descriptors alone new scans are told from old ones.
    assert asked == {("get_object", key, "descriptor.bin") for key in first}
    grown = modified(s3, store)
    assert all(grown[name] == known for name, known in scans.items() if name.partition("/")[0] in first)
    full = [f"index/part-0000{number}.parquet" for number in range(2)]
    assert [grown[name] for name in full] == [scans[name] for name in full]
    with requests() as made:
        manifest = pack(store, shards, plan.contract, plan.patch, plan.strides, cut)
    assert manifest.volumes == 20
    cuts = {part for _, key, _ in made for part in key.split("/") if "/c/" in key}
    assert not first & cuts  # no voxel of an old scan is fetched
    old = {name for name in tars if name.startswith("shard-")}
    wrote = {key.rpartition("/")[2] for method, key, _ in made if "put" in method or "upload" in method}
    assert not wrote & old
    now = modified(s3, shards)
    assert all(now[name] == tars[name] for name in old)
    assert len([name for name in now if name.endswith(".tar")]) > len([name for name in old if name.endswith(".tar")])

    with_key = tmp_path / "here.private"
    with_key.mkdir()
    (with_key / "key").write_bytes(s3.file_system().cat_file(f"{inside(store)}.private/key"))
    ingest([source], tmp_path / "here", SMALL)
    (tmp_path / "here" / "zarr.json").write_bytes(grown["zarr.json"][0])  # which the plan was stamped into
    files = {name: data for name, data in bytes_of(tmp_path / "here").items() if data is not None and name != ".lock"}
    assert {name: data for name, (data, _) in grown.items()} == files
