"""What packing finds in its folder: an index that was changed is not taken up, and what others left there stays."""

import json
import threading

import pytest
from tests_stores import make_store

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from data_prep.part import Part
from data_prep.shard_folder import held
from data_prep.verify import verify_shards
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.files import locked
from voxscale.shards import index_text, open_manifest, parse_index

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
CUT = PackConfig(factor=1.25, shard_mb=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "store"
    make_store(folder, 4, labelled=False, shape=(70, 60, 66))
    return folder


def packed(store, folder):
    return pack(store, folder, CONTRACT, (8, 8, 8), STRIDES, CUT)


def state(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("shard-*")}


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("change", ["crc32c", "group", "name", "cut", "empty", "list", "deep"])
def test_a_changed_index_is_not_taken_up_but_its_tar_made_anew(store, tmp_path, change):
    shards = tmp_path / "shards"
    manifest = packed(store, shards)
    assert len(manifest.shards) > 1
    before, times = bytes_in(shards), state(shards)
    file = shards / "shard-00001.index.json"
    told = json.loads(file.read_text())
    if change == "crc32c":
        told["samples"][0]["crc32c"] ^= 1
    elif change == "group":
        told["samples"][0]["group"] = "main/CT/knee"
    elif change == "name":
        told["name"] = "../shard-00001.tar"
    others = {"cut": file.read_text()[:-100], "empty": "", "list": "[]", "deep": "[" * 100_000}
    file.write_text(others.get(change, json.dumps(told, indent=1) + "\n"))
    (shards / "manifest.json").unlink()  # nothing else tells that it was changed
    assert packed(store, shards) == manifest
    assert bytes_in(shards) == before
    assert not verify_shards(shards, 1)[1]
    kept = {name for name, (_, when) in state(shards).items() if times[name][1] == when}
    assert kept == set(times) - {"shard-00001.tar", "shard-00001.index.json"}


def test_an_index_of_before_has_no_checksum_and_is_kept_where_the_manifest_vouches_for_it(store, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr("voxscale.tars.index_text", lambda index: without(index_text(index)))
        packed(store, shards)
    file, before = shards / "shard-00001.index.json", state(shards)
    assert parse_index(file.read_bytes(), "shard-00001.tar")[1] is False
    assert not verify_shards(shards, 1)[1]
    packed(store, shards)
    assert state(shards) == before
    told = json.loads(file.read_text())
    told["samples"][0]["crc32c"] ^= 1
    file.write_text(json.dumps(told, indent=1) + "\n")
    packed(store, shards)
    assert {name for name, now in state(shards).items() if now != before[name]} == {file.name, "shard-00001.tar"}
    assert parse_index(file.read_bytes(), "shard-00001.tar")[1] is True
    assert without(file.read_bytes()) == before[file.name][0]


def without(text):
    told = json.loads(text)
    del told["crc32c"]
    return (json.dumps(told, indent=1) + "\n").encode()


def test_tars_of_others_are_not_written_over(store, tmp_path, s3):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "shard-00000.tar").write_bytes(b"of webdataset")
    (theirs / "notes.txt").write_text("keep")
    for folder in (theirs, s3.upload(theirs)):
        with pytest.raises(DataError, match="must be an empty folder or one that was packed into") as error:
            packed(store, folder)
        assert error.value.reason == "not_shards"
    assert (theirs / "shard-00000.tar").read_bytes() == b"of webdataset"
    (theirs / "shard-00000.tar").unlink()
    packed(store, theirs)
    assert (theirs / "notes.txt").read_text() == "keep"


def test_hidden_files_of_others_stay(store, tmp_path):
    shards = tmp_path / "shards"
    (shards / ".cache.tmp").mkdir(parents=True)
    (shards / ".work.tmp").write_text("theirs")
    (shards / ".shard-00003.tar.far.12.tmp").write_text("half of a tar")
    packed(store, shards)
    assert {path.name for path in shards.glob(".*")} - {".lock"} == {".cache.tmp", ".work.tmp"}


def everything_in(folder):
    return {p.relative_to(folder).as_posix(): p.is_file() and p.read_bytes() for p in sorted(folder.rglob("*"))}


def test_a_folder_that_workers_packed_is_that_of_one_run(store, tmp_path):
    packed(store, tmp_path / "one")
    for number in (1, 2):
        pack(store, tmp_path / "two", CONTRACT, (8, 8, 8), STRIDES, CUT, part=Part(number, 2))
    assert (tmp_path / "two" / ".parts" / "1-of-2" / ".lock").is_file()
    packed(store, tmp_path / "two")
    assert everything_in(tmp_path / "two") == everything_in(tmp_path / "one")


def test_a_worker_that_waits_for_a_lock_that_is_removed_holds_the_new_one(tmp_path):
    """Else it and a third one would both go on."""
    folder, got, done = tmp_path / ".parts" / "1-of-2", threading.Event(), threading.Event()

    def wait():
        with held(tmp_path, Part(1, 2)):
            got.set()
            done.wait(20)

    with held(tmp_path, Part(1, 2)):
        pass
    waiting = threading.Thread(target=wait)
    with held(tmp_path, None):
        waiting.start()
        assert not got.wait(0.5)
    assert got.wait(10)
    with pytest.raises(DataError, match="must be free"), locked(folder, 0.0):
        pass
    done.set()
    waiting.join()
    with held(tmp_path, None):
        pass
    assert not (tmp_path / ".parts").exists()


def test_what_was_planned_and_lost_its_plan_is_packed_again(store, tmp_path):
    """As the error of a damaged plan says."""
    shards = tmp_path / "shards"
    manifest = packed(store, shards)
    (shards / "groups.json").write_text("")
    with pytest.raises(DataError, match="remove it and pack again"):
        packed(store, shards)
    (shards / "groups.json").unlink()
    before = state(shards)
    assert packed(store, shards) == manifest == open_manifest(shards)
    assert state(shards) == before
