import contextlib
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from ingested import SMALL, bytes_of, nifti
from object_store import inside
from tests_stores import make_store

from data_prep import reading
from data_prep.bricks import PackConfig
from data_prep.ingest import ingest
from data_prep.pack import pack
from data_prep.verify import VerifyArgs, main
from voxscale.blobs import Held
from voxscale.contract import InputContract
from voxscale.errors import ConfigError, DataError
from voxscale.files import locked
from voxscale.folder import open_folder
from voxscale.shard_reader import ShardReader
from voxscale.shards import check_index, index_name, open_manifest, payloads
from voxscale.store import open_store

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_store(folder / "store", 3, labelled=True)
    pack(folder / "store", folder / "shards", CONTRACT, (8, 8, 8), STRIDES, PackConfig(factor=1.25, shard_mb=1))
    return folder


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_every_byte_of_a_tar_belongs_to_a_sample_that_notices_its_change(made):
    """All headers, JSON and padding byte by byte, and every 31st byte of voxels; the end of the tar is `verify`'s."""
    folder = made / "shards"
    manifest = open_manifest(folder)
    name = manifest.shards[0].name
    reader = ShardReader(folder, manifest)
    samples, whole = reader.index(name).samples, (folder / name).read_bytes()
    assert samples[0].span[0] == 0
    assert all(one.span[1] == two.span[0] for one, two in itertools.pairwise(samples))
    assert not any(whole[samples[-1].span[1] :])  # only the blocks that end a tar
    sample = samples[1]
    inside = {place for start, length in payloads(sample) for place in range(start, start + length)}
    places = [p for p in range(*sample.span) if p not in inside or p % 31 == 0]
    for place in places:
        changed = Held(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        reader._tars = lambda _, changed=changed: changed
        with pytest.raises(DataError) as error:
            reader.open(name, sample).read()
        assert error.value.reason == "corrupt"
    reader._tars = lambda _: changed
    assert reader.open(name, samples[0]).read()[0].size  # the others can be read


@pytest.mark.slow
def test_every_byte_of_an_index_and_of_the_manifest_is_checked(made, tmp_path):
    folder = shutil.copytree(made / "shards", tmp_path / "shards")
    manifest = open_manifest(folder)
    index = folder / index_name(manifest.shards[0].name)
    for file, read in (
        (index, lambda: ShardReader(folder, manifest).index(manifest.shards[0].name)),
        (folder / "manifest.json", lambda: open_manifest(folder)),
    ):
        whole, wanted = file.read_bytes(), read()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            try:
                found = read()
            except DataError:
                continue
            assert found == wanted  # 1e-05 written as 1E-05 is the same
            assert file != index
        file.write_bytes(whole)


def test_an_index_of_others_is_refused_before_it_is_used(made):
    import dataclasses

    manifest = open_manifest(made / "shards")
    line = manifest.shards[0]
    index = ShardReader(made / "shards", manifest).index(line.name)
    first = index.samples[0]
    for values in (
        {"key": "../../etc/passwd"}, {"key": ""}, {"span": (-512, first.span[1])}, {"span": (0, line.bytes + 512)},
        {"json": (10, 5)}, {"voxels": (first.voxels[0], line.bytes)}, {"voxels": (first.voxels[0], -1)},
    ):  # fmt: skip
        bad = dataclasses.replace(index, samples=(dataclasses.replace(first, **values), *index.samples[1:]))
        with pytest.raises(DataError, match="places inside the tar, not brick 0"):
            check_index(bad, line.name, line.bytes)
    check_index(index, line.name, line.bytes)


def verified(path, capsys):
    code = main([str(path), "--workers", "2"])
    return code, json.loads(capsys.readouterr().out)


def test_damaged_shards_are_listed(made, tmp_path, capsys, caplog):
    assert verified(made / "shards", capsys) == (0, {"shards": 1, "damaged": 0})
    tar = shutil.copytree(made / "shards", tmp_path / "shards") / "shard-00000.tar"
    whole = tar.read_bytes()
    for damage in (lambda: flip(tar, len(whole) - 1), lambda: tar.write_bytes(whole[:-512]), tar.unlink):
        damage()
        assert verified(tmp_path / "shards", capsys) == (1, {"shards": 1, "damaged": 1})
    assert [each.partition("tar: ")[2] for each in caplog.messages] == [
        "its bytes differ from what was written", f"it has {len(whole) - 512} bytes instead of {len(whole)}",
        "it is missing",
    ]  # fmt: skip
    tar.write_bytes(whole)
    flip(tmp_path / "shards" / "shard-00000.index.json", 30)
    assert verified(tmp_path / "shards", capsys)[0] == 1


def test_damaged_scans_are_listed(made, tmp_path, capsys, caplog):
    assert verified(made / "store", capsys) == (0, {"scans": 3, "damaged": 0})
    shutil.copytree(made / "store", tmp_path / "store")
    keys = list(open_store(tmp_path / "store").entries)
    for part in ("0", "labels/task/0"):
        flip(next(p for p in (tmp_path / "store" / keys[0] / part / "c").rglob("*") if p.is_file()), 40)
    next(p for p in (tmp_path / "store" / keys[2] / "0" / "c").rglob("*") if p.is_file()).unlink()
    assert verified(tmp_path / "store", capsys) == (1, {"scans": 3, "damaged": 2})
    assert [each.split(": ")[1] for each in caplog.messages] == [keys[0], keys[0], keys[2]]
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        VerifyArgs(path=tmp_path, workers=0)


def test_shards_behind_a_url_are_verified(made, s3, capsys):
    assert verified(s3.upload(made / "shards"), capsys) == (0, {"shards": 1, "damaged": 0})


@pytest.mark.parametrize("where", ["folder", "url"])
def test_what_is_damaged_is_removed_and_made_anew_alone(tmp_path, s3, capsys, monkeypatch, where):
    """A scan by ingest, a tar by pack: to the bytes that there were."""
    for number in range(3):
        nifti(tmp_path / "in" / f"s{number}.nii", number)
    store, shards = (tmp_path / "store", tmp_path / "shards") if where == "folder" else (s3.folder(), s3.folder())

    def prepare():
        assert ingest([tmp_path / "in"], store, SMALL, tmp_path / "work").accepted == 3
        config = PackConfig(factor=1.25, shard_mb=1, foreground=0.0)
        return pack(store, shards, CONTRACT, (8, 8, 8), STRIDES, config)

    def everything():
        if where == "url":
            return s3.objects(store), s3.objects(shards)
        return bytes_of(store), bytes_of(shards)

    def harm(folder, name):
        if where == "folder":
            return flip(folder / name, 40)
        system, path = s3.file_system(), f"{inside(folder)}/{name}"
        data = system.cat_file(path)
        return system.pipe_file(path, data[:40] + bytes([data[40] ^ 1]) + data[41:])

    manifest = prepare()
    before = everything()
    key = sorted(open_store(store).entries)[1]
    for name in (f"{key}/0/c/0/0/0", f"{key}/zarr.json"):
        harm(store, name)
    harm(shards, "shard-00000.tar")
    for path, kind in ((store, "scans"), (shards, "shards")):
        count = {"scans": 3, "shards": 1}[kind]
        assert verified(path, capsys) == (1, {kind: count, "damaged": 1})
        assert main([str(path), "--remove"]) == 1
        assert json.loads(capsys.readouterr().out) == {kind: count, "damaged": 1, "removed": 1}
    read, real = [], reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: read.append(job.key) or real(self, job, now))
    assert prepare() == manifest
    assert read == [key]
    assert everything() == before
    for path in (store, shards):
        assert verified(path, capsys)[0] == 0


@pytest.mark.parametrize("kind", ["store", "shards"])
def test_nothing_is_removed_while_another_run_writes(made, tmp_path, kind):
    """What it is replacing looks damaged for a moment."""
    folder = shutil.copytree(made / kind, tmp_path / kind)
    harmed = next(path for path in sorted(folder.rglob("*")) if path.match("*/0/c/0/0/0") or path.suffix == ".tar")
    flip(harmed, 40)
    with locked(folder):
        assert main([str(folder)]) == 1
        with pytest.raises(DataError, match="must be free, not in use by another live process"):
            main([str(folder), "--remove"])
    assert harmed.is_file()
    assert main([str(folder), "--remove"]) == 1
    assert not harmed.exists()


@contextlib.contextmanager
def without_rights():
    """As a user who is not root, whom no rights bind."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if me == 0:
            os.seteuid(me)


@pytest.mark.parametrize("kind", ["store", "shards"])
def test_what_may_not_be_read_is_not_called_damaged_and_stays(made, kind):
    with tempfile.TemporaryDirectory() as root:  # where others may look, unlike in tests' folders
        os.chmod(root, 0o777)
        folder = shutil.copytree(made / kind, Path(root) / kind)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        kept = next(path for path in sorted(folder.rglob("*")) if path.match("*/0/c/0/0/0") or path.suffix == ".tar")
        kept.chmod(0)
        for args in ([], ["--remove"]):
            with without_rights(), pytest.raises(PermissionError):
                main([str(folder), *args])
        assert kept.is_file()
        kept.chmod(0o666)
        assert main([str(folder)]) == 0


def test_a_folder_that_is_neither_is_left_alone(tmp_path):
    (tmp_path / ".shard-00001.tar.far.12.tmp").write_text("whose?")
    with pytest.raises(DataError):
        main([str(tmp_path), "--remove"])
    assert [path.name for path in tmp_path.iterdir()] == [".shard-00001.tar.far.12.tmp"]


@pytest.mark.parametrize("where", ["folder", "url"])
@pytest.mark.parametrize("name", ["part-00000.parquet", "cells.bin", "index.json"])
def test_a_damaged_index_is_listed_and_made_anew(tmp_path, s3, capsys, monkeypatch, where, name):
    """Cut to nothing, a byte changed, or gone; by `ingest` alone where it can tell, else after `--remove`."""
    for number in range(3):
        nifti(tmp_path / "in" / f"s{number}.nii", number)
    store = tmp_path / "store" if where == "folder" else s3.folder()
    ingest([tmp_path / "in"], store, SMALL, tmp_path / "work")
    folder, file = open_folder(store), f"index/{name}"
    whole = {part: folder.read(f"index/{part}") for part in ("part-00000.parquet", "cells.bin", "index.json")}
    changed = bytes([whole[name][0] ^ 1]) + whole[name][1:]
    monkeypatch.setattr(reading.Reading, "_read", None)
    for data in (b"", changed, None):
        folder.remove(file) if data is None else folder.write(file, data)
        code, told = verified(store, capsys)
        gone = data is None and name == "index.json"  # then the ledger is read, as while a store is written
        assert (code, told) == ((0, {"scans": 3, "damaged": 0}) if gone else (1, {"scans": 3, "damaged": 1}))
        if where == "url" and data == changed and name == "part-00000.parquet":
            assert main([str(store), "--remove"]) == 1
            assert json.loads(capsys.readouterr().out)["removed"] == 1
        assert ingest([tmp_path / "in"], store, SMALL, tmp_path / "work").accepted == 3
        assert verified(store, capsys) == (0, {"scans": 3, "damaged": 0})
        assert {part: folder.read(f"index/{part}") for part in whole} == whole
    told = json.loads(whole["index.json"])
    folder.write("index/index.json", json.dumps(told | {"rows": 4}).encode())
    with pytest.raises(DataError, match="as many rows as its parts"):
        open_store(store)
    ingest([tmp_path / "in"], store, SMALL, tmp_path / "work")
    assert len(open_store(store).entries) == 3
