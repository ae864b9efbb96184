"""Every brick says by which settings its scan was taken in and it was cut; older shards are read, and packed anew."""

import hashlib
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingested import SMALL, bytes_of, nifti, with_key_of

from data_prep import pack as packing
from data_prep.bricks import PackConfig
from data_prep.config import RulesConfig
from data_prep.ingest import ingest, ingest_part
from data_prep.part import Part
from voxscale import index_table, tars
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.shard_reader import ShardReader
from voxscale.shards import open_manifest
from voxscale.store import open_store
from voxscale.stream import ShardStream, ShardStreamConfig

CONTRACT, PATCH = InputContract(spacing=(3.0, 2.0, 2.0)), (8, 8, 8)
STRIDES = ((2, 2, 2), *((1, 1, 1),) * 4)
CUT = PackConfig(factor=1.25, shard_mb=1, levels=2, foreground=0.0)


def pack(store, shards, config=CUT, part=None):
    return packing.pack(store, shards, CONTRACT, PATCH, STRIDES, config, part=part)


def told(shards):
    """What the JSON of each sample says, read by nothing of ours."""
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")}
    return found


def made(store):
    """Hash of the hashes of the steps that made each scan, as the private list keeps them."""
    lines = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    private = store.with_name(f"{store.name}.private") / "sources.jsonl"
    rows = [json.loads(line) for line in private.read_text().splitlines()]
    steps = {lines[row["row"]]["id"]: json.dumps(row["steps"], sort_keys=True).encode() for row in rows}
    return {key: hashlib.sha256(text).hexdigest()[:12] for key, text in steps.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provenance")
    for number in range(2):
        nifti(folder / "in" / f"{number}.nii", number, (24, 32, 32))
    ingest([folder / "in"], folder / "store", SMALL)
    pack(folder / "store", folder / "shards")
    return folder


def test_every_sample_tells_the_settings_that_took_it_in_and_that_cut_it(data):
    found, wanted = told(data / "shards"), made(data / "store")
    assert len(found) >= 4
    assert len({*wanted.values()}) == 2  # of whom a scan is belongs to them
    for meta in found.values():
        assert meta["ingest"] == wanted[meta["volume"]]
        assert meta["pack"] == json.loads((data / "shards" / "manifest.json").read_text())["config_hash"]
    store = open_store(data / "store")
    for key, known in wanted.items():
        assert store.entries[key].ingest == store.entry(key).ingest == known
        assert json.loads((data / "store" / key / "zarr.json").read_text())["attributes"]["voxscale"]["ingest"] == known


def test_workers_tell_the_same(data, tmp_path):
    store, shards = with_key_of(data / "store", tmp_path / "store"), tmp_path / "shards"
    for number in (3, 1, 2):
        ingest_part([data / "in"], store, SMALL, Part(number, 3))
    ingest([data / "in"], store, SMALL)
    assert bytes_of(store) == bytes_of(data / "store")
    for number in (2, 1):
        pack(store, shards, part=Part(number, 2))
    pack(store, shards)
    for path in (data / "shards").glob("[!.]*"):
        assert path.read_bytes() == (shards / path.name).read_bytes()


def test_a_change_of_settings_shows_in_its_own_hash_and_redoes_only_what_depends_on_it(tmp_path):
    source, store, shards = tmp_path / "in", tmp_path / "store", tmp_path / "shards"
    people = tmp_path / "people.csv"
    people.write_text("file,subject\na.nii,ann\nb.nii,bob\n")
    settings = replace(SMALL, subject=str(people))
    nifti(source / "a.nii", 0)
    ingest([source], store, settings)
    pack(store, shards)
    nifti(source / "b.nii", 1)
    ingest([source], store, settings)
    pack(store, shards)
    files = sorted(shards.glob("shard-*"))
    assert len(files) == 4
    first, times = told(shards), {path.name: path.stat().st_mtime_ns for path in files}

    def changed():
        return {path.name for path in shards.glob("shard-*") if path.stat().st_mtime_ns != times[path.name]}

    people.write_text("file,subject\na.nii,ann\nb.nii,eve\n")
    ingest([source], store, settings)
    pack(store, shards)
    assert changed() == {"shard-00001.tar", "shard-00001.index.json"}
    second = told(shards)
    same = {name for name in first if first[name] == second[name]}
    assert {first[name]["volume"] for name in same} == {key_of(store, 0)}
    ingest([source], store, replace(settings, rules=RulesConfig(min_slices=7)))
    pack(store, shards)
    third = told(shards)
    assert all(third[name]["ingest"] != second[name]["ingest"] for name in second)
    assert all({**third[name], "ingest": 0} == {**second[name], "ingest": 0} for name in second)
    before = bytes_of(store)
    pack(store, shards, replace(CUT, overlap=0.3))
    fourth = told(shards)
    assert bytes_of(store) == before
    assert {path.name for path in shards.glob("shard-*")} == {
        "shard-00000.tar",
        "shard-00000.index.json",
    }
    assert all(fourth[name]["pack"] != third[name]["pack"] for name in third)
    assert all(fourth[name]["ingest"] == third[name]["ingest"] for name in third)


def key_of(store, number):
    return json.loads((store / "ledger.jsonl").read_text().splitlines()[number])["id"]


@pytest.fixture
def older(data, tmp_path, monkeypatch):
    """Shards as they were before their bricks told it."""
    real = tars.written
    with monkeypatch.context() as patch:

        def without(value):
            plain = real(value)
            return {k: v for k, v in plain.items() if k not in ("ingest", "pack")} if "affine" in plain else plain

        patch.setattr(tars, "written", without)
        patch.setattr(packing, "SCHEMA", 4)
        pack(data / "store", tmp_path / "shards")
    assert not any({"ingest", "pack"} & meta.keys() for meta in told(tmp_path / "shards").values())
    return tmp_path / "shards"


def test_older_shards_are_read_and_packed_anew_by_the_next_run(data, older):
    assert open_manifest(older).schema_version == 4
    streams = [ShardStream(path, ShardStreamConfig(repeats=1.0), 3) for path in (older, data / "shards")]
    for index in range(len(streams[0])):
        (one, bad), (two, _) = (stream.sample(index) for stream in streams)
        assert not bad
        assert all(np.array_equal(a.voxels, b.voxels) for a, b in zip(one, two, strict=True))
    pack(data / "store", older)
    for path in (data / "shards").glob("[!.]*"):
        assert path.read_bytes() == (older / path.name).read_bytes()


def test_scans_that_an_older_version_took_in_say_nothing_until_they_are_ingested_again(
    data, tmp_path, monkeypatch, caplog
):
    """Their index has no such column, their attributes no such field."""
    store = with_key_of(data / "store", tmp_path / "store")
    ingest([data / "in"], store, SMALL)
    for row in (text := [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]):
        del row["entry"]["ingest"]
    (store / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    (part,) = (store / "index").glob("*.parquet")
    columns = [name for name in pq.read_schema(part).names if name != "ingest"]
    from voxscale import index, index_write

    with monkeypatch.context() as patch:
        schema = index_table.SCHEMA.remove(index_table.SCHEMA.get_field_index("ingest"))
        for module in (index_table, index_write):
            patch.setattr(module, "SCHEMA", schema)
        patch.setattr(index_write, "VERSION", 3)
        index_write.publish_index(store, index_write.write_parts(store, store))
    assert pq.read_schema(part).names == columns
    assert json.loads((store / "index" / "index.json").read_text())["version"] == 3
    assert index.Index(store)[key_of(store, 0)].ingest is None
    pack(store, tmp_path / "shards")
    assert "2 scans do not say by which settings" in caplog.text
    assert {meta["ingest"] for meta in told(tmp_path / "shards").values()} == {None}


@pytest.mark.parametrize(
    "change",
    [{"pack": "0123456789ab"}, {"pack": None}, {"ingest": "0123456789a"}, {"ingest": "../etc/passwd"}, {"ingest": 7}],
    ids=str,
)
def test_a_brick_that_tells_something_else_is_damaged(data, tmp_path, monkeypatch, change):
    real = tars.written

    def forged(value):
        plain = real(value)
        return plain | change if "affine" in plain else plain

    monkeypatch.setattr(tars, "written", forged)
    pack(data / "store", tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards", open_manifest(tmp_path / "shards"))
    line = reader.manifest.shards[0]
    with pytest.raises(DataError) as error:
        reader.open(line.name, reader.index(line.name).samples[0])
    assert error.value.reason == "corrupt"
