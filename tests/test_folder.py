import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from object_store import SECRET, inside, requests

from voxscale.errors import ConfigError, StorageError
from voxscale.folder import LocalFolder, open_folder, url_of
from voxscale.remote import RemoteFolder


def test_urls_are_told_from_paths():
    assert url_of("s3://bucket/a") == "s3://bucket/a"
    assert url_of(Path("s3://bucket/a")) == "s3://bucket/a"  # Path folds the slashes
    assert url_of(Path("/data/a")) is None
    assert url_of("a/b:c") is None
    assert isinstance(open_folder(Path("store")), LocalFolder)
    assert open_folder("https://name:password@host/?token=secret").name == "host"[:0]
    assert open_folder("https://name:password@host?token=secret").name == "host"


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    return open_folder(tmp_path if request.param == "local" else request.getfixturevalue("s3").folder())


def test_what_is_written_is_there_whole(folder, tmp_path):
    assert list(folder.names()) == []
    assert folder.size("a/b") is None
    with pytest.raises(FileNotFoundError) as error:
        folder.read("a/b")
    assert "bucket" not in str(error.value)
    folder.write("a.bin", bytes(range(200)))
    (tmp_path / "made").write_bytes(b"12345")
    folder.put(tmp_path / "made", "c")
    assert not (tmp_path / "made").exists()
    folder.write("empty", b"")
    assert list(folder.names()) == ["a.bin", "c", "empty"]
    assert (folder.size("a.bin"), folder.read("c"), folder.read("empty")) == (200, b"12345", b"")
    folder.remove("c")
    folder.remove("c")
    assert folder.size("c") is None
    folder.write("a.bin", b"new")
    assert folder.read("a.bin") == b"new"


def test_parts_of_an_object(folder):
    data = bytes(range(256)) * 10
    folder.write("blob", data)
    blob = folder.blob("blob")
    assert bytes(blob.tail(10)) == data[-10:]
    assert blob.ranges([(5, 10), (2000, 2500), (2550, 2600), (9999, 10001)]) == [
        data[5:10], data[2000:2500], data[2550:2560], b""
    ]  # fmt: skip
    folder.write("short", b"abc")
    assert bytes(folder.blob("short").tail(10)) == b"abc"


def test_an_object_is_asked_for_once(s3):
    folder = open_folder(s3.folder())
    folder.write("a", b"x" * 1000)
    with requests() as made:
        assert len(folder.read("a")) == 1000
        folder.blob("a", 1000).ranges([(0, 10), (500, 600)])
    assert [method for method, _, _ in made] == ["get_object"] * 3


@pytest.fixture
def impatient(s3, monkeypatch):
    """Clients that ask twice, not for ten seconds."""
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3.gate.shut()
    s3.gate.open(s3.port)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_server_that_is_gone_is_told_without_address_key_or_path(s3, impatient):
    folder = open_folder(s3.folder())
    folder.write("patient-name", b"x")
    s3.gate.shut()
    for call in (folder.read, folder.size, folder.remove, lambda name: folder.blob(name).tail(3)):
        with pytest.raises(StorageError, match="storage behind the URL") as error:
            call("patient-name")
        text = str(error.value)
        assert not [word for word in ("127.0.0.1", SECRET, "bucket", "patient-name") if word in text]
        assert error.value.__suppress_context__
    s3.gate.open(s3.port)
    assert folder.read("patient-name") == b"x"


def test_connections_that_break_are_made_anew(s3):
    folder = open_folder(s3.folder())
    folder.write("a", b"x" * 100)
    for _ in range(3):
        s3.gate.cut()
        assert len(folder.read("a")) == 100


def test_wrong_keys_are_told(s3, impatient, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other-secret")
    with pytest.raises(StorageError, match="credentials allow this") as error:
        open_folder(s3.folder()).read("a")
    assert "other-secret" not in str(error.value)


def test_a_kind_of_url_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"url must be of a kind.*not nowhere; .*voxscale\[s3\]") as error:
        open_folder("nowhere://host/secret").read("a")
    assert "secret" not in str(error.value)


def _read_in_child(folder, blob, pipe):
    pipe.send([folder.read("a"), bytes(blob.tail(2))])
    os._exit(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads is what is tested
def test_forked_and_fresh_processes_open_their_own_connections(s3):
    folder = open_folder(s3.folder())
    folder.write("a", b"hello")
    blob = folder.blob("a")
    assert bytes(blob.tail(2)) == b"lo"  # threads and connections of this process exist now
    for how in ("fork", "forkserver"):
        context = multiprocessing.get_context(how)
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_read_in_child, args=(folder, blob, there))
        child.start()
        assert here.poll(60)
        assert here.recv() == [b"hello", b"lo"]
        child.join(30)
        here.close()
        there.close()
    again = pickle.loads(pickle.dumps(folder))
    assert isinstance(again, RemoteFolder)
    assert again.read("a") == b"hello"
    assert inside(Path(again.url)) == inside(Path(folder.url))
