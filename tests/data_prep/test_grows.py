"""Scans that are added to a finished store and its shards: only they are read, and nothing old is written again."""

import shutil

import pyarrow.parquet as pq
import pytest
from ingested import SMALL, bytes_of, nifti, with_key_of

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
