"""Large objects go to a real server in pieces and come in a stream; what a kill leaves of an upload is aborted."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from object_store import inside, requests
from tests_stores import make_store
from upload_memory import measure

from data_prep.bricks import PackConfig
from data_prep.home import RemoteHome
from data_prep.pack import pack
from voxscale import files, uploads
from voxscale.contract import InputContract
from voxscale.errors import StorageError
from voxscale.remote import RemoteFolder

ROOT = Path(__file__).resolve().parents[1]
MOST = 4 * uploads.PIECES * uploads.PIECE
"""Bytes of memory beside what a small object needs; the library's own way takes about twice an object of 100 MB."""
SIZE = 192 << 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_of_an_upload_and_a_download_is_bounded(s3, tmp_path):
    url = s3.folder()
    found = measure(url, tmp_path, SIZE)
    assert found["up"] < MOST, found
    assert found["down"] < MOST, found
    s3.file_system().rm(inside(url), recursive=True)


def test_an_object_in_pieces_is_the_same(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE", 5 << 20)  # S3 takes no smaller ones but the last
    url, file = s3.folder(), tmp_path / "file"
    data = np.random.default_rng(1).bytes((12 << 20) + 17)
    file.write_bytes(data)
    folder = RemoteFolder(f"s3://{inside(url)}")
    with requests() as made:
        folder.put(file, "object")
    assert [name for name, _, _ in made if name == "upload_part"] == ["upload_part"] * 3
    assert not file.exists()
    assert s3.objects(url) == {"object": data}
    with requests() as made:
        stamp = folder.fetch("object", tmp_path / "back")
    assert [part for name, _, part in made if name == "get_object"] == [""]
    assert (tmp_path / "back").read_bytes() == data
    assert stamp == folder.stamp("object")


def test_pieces_grow_where_there_would_be_too_many():
    assert uploads.piece_of(10**9) == uploads.PIECE
    assert uploads.piece_of(10**12) * uploads.MOST_PIECES >= 10**12


def test_what_is_in_memory_goes_in_one_request(s3):
    folder = RemoteFolder(f"s3://{inside(s3.folder())}")
    with requests() as made:  # 100 MiB are where s3fs would begin an upload in pieces
        folder.write("large", bytes(101 << 20))
        assert folder.create("new", bytes(101 << 20))
    assert [name for name, _, _ in made] == ["put_object"] * 2
    folder.drop("")


STOPPED = """
import os, signal, sys, threading
from pathlib import Path
import s3fs
from voxscale import files, uploads
from voxscale.remote import RemoteFolder

files.HOST = sys.argv[3] or files.HOST
real, sent, go = s3fs.S3FileSystem.call_s3, [], threading.Event()

def stopping(self, method, *args, **kwargs):
    if method == "upload_part":
        sent.append(kwargs["PartNumber"])
        if len(sent) == 6:
            print("mid", flush=True)
            threading.Thread(target=lambda: (sys.stdin.read(1), go.set()), daemon=True).start()
        if len(sent) >= 6:
            go.wait()
    return real(self, method, *args, **kwargs)

s3fs.S3FileSystem.call_s3 = stopping
RemoteFolder(sys.argv[1]).put_some({"large": Path(sys.argv[2])})
"""
"""Uploads a file of 64 MiB and stops after five of eight pieces, until told; its third argument is its machine."""


@pytest.fixture
def large(tmp_path):
    file = tmp_path / "large"
    file.write_bytes(np.random.default_rng(2).bytes(8 * uploads.PIECE))
    return file


@contextlib.contextmanager
def stopped(url, file, host=""):
    """A process in the middle of an upload."""
    command = [sys.executable, "-c", STOPPED, f"s3://{inside(url)}", str(file), host]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    try:
        assert process.stdout.readline() == "mid\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL


def notes():
    return {path.name for path in uploads._notes().iterdir()}


@pytest.mark.slow
def test_an_upload_that_was_killed_is_aborted_by_the_next_run_and_one_under_way_goes_on(s3, large, caplog):
    caplog.set_level("INFO", logger="voxscale")
    url, beside = s3.folder(), s3.folder()
    beside = Path(f"{url}-beside")  # its name begins alike
    folder = RemoteFolder(f"s3://{inside(url)}")
    with stopped(url, large) as dead, stopped(url, large) as alive, stopped(beside, large) as other:
        assert s3.uploads(url) == ["-beside/large", "/large", "/large"]
        kill(dead)
        kill(other)
        folder.clear_uploads()
        assert "1 uploads to" in caplog.text
        assert s3.uploads(url) == ["-beside/large", "/large"]
        assert s3.objects(url) == {}
        alive.communicate("x")
        assert alive.returncode == 0
    assert s3.uploads(url) == ["-beside/large"]
    assert s3.objects(url) == {"large": large.read_bytes()}
    RemoteFolder(f"s3://{inside(beside)}").clear_uploads()
    assert s3.uploads(url) == []
    assert not [name for name in notes() if f".{dead.pid}.tmp" in name or f".{other.pid}.tmp" in name]


@pytest.mark.slow
def test_an_upload_of_another_machine_is_aborted_once_it_is_old(s3, large, monkeypatch):
    url = s3.folder()
    folder = RemoteFolder(f"s3://{inside(url)}")
    with stopped(url, large, "elsewhere") as process:
        kill(process)  # nobody here can know
    folder.clear_uploads()
    assert s3.uploads(url) == ["/large"]
    monkeypatch.setattr(uploads, "ABANDONED_S", 3600.0)
    folder.clear_uploads()
    assert s3.uploads(url) == ["/large"]
    monkeypatch.setattr(uploads, "ABANDONED_S", -2.0)  # times of a listing are whole seconds
    folder.clear_uploads()
    assert s3.uploads(url) == []
    left = [path for path in uploads._notes().iterdir() if ".elsewhere." in path.name]
    assert len(left) == 1  # of another machine, which has a folder of its own unless it is shared
    left[0].unlink()


def test_an_upload_that_fails_leaves_nothing(s3, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.setattr(uploads, "PIECE", 5 << 20)
    url, file, real = s3.folder(), tmp_path / "file", s3fs.S3FileSystem.call_s3
    file.write_bytes(bytes(12 << 20))
    folder, before = RemoteFolder(f"s3://{inside(url)}"), notes()
    for error, told in ((ValueError("secret"), StorageError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def failing(self, method, *args, error=error, **kwargs):
            if method == "complete_multipart_upload":
                assert len(notes()) == len(before) + 1
                raise error
            return real(self, method, *args, **kwargs)

        with monkeypatch.context() as other:
            other.setattr(s3fs.S3FileSystem, "call_s3", failing)
            with pytest.raises(told):
                folder.put_some({"object": file})
        assert s3.uploads(url) == []
        assert s3.objects(url) == {}
        assert notes() == before


def test_an_upload_that_another_run_aborts_says_so(s3, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.setattr(uploads, "PIECE", 5 << 20)
    url, file, real = s3.folder(), tmp_path / "file", s3fs.S3FileSystem.call_s3
    file.write_bytes(bytes(12 << 20))

    def aborted(self, method, *args, **kwargs):
        if method == "upload_part" and kwargs["PartNumber"] == 1:
            real(self, "abort_multipart_upload", **{name: kwargs[name] for name in ("Bucket", "Key", "UploadId")})
        return real(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", aborted)
    with pytest.raises(StorageError, match="another run has aborted it"):
        RemoteFolder(f"s3://{inside(url)}").put_some({"object": file})


def begun(s3, url, name):
    """An upload below a folder that a process which is gone has begun."""
    bucket, _, key = inside(url).partition("/")
    where = {"Bucket": bucket, "Key": f"{key}/{name}"}
    note = uploads._note(where | {"UploadId": s3.file_system().call_s3("create_multipart_upload", **where)["UploadId"]})
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    note.rename(note.with_name(note.name.replace(f".{os.getpid()}.tmp", f".{gone.stdout.strip()}.tmp")))


def test_ingest_and_pack_abort_them_as_they_begin(s3, tmp_path):
    url = s3.folder()
    private = Path(f"{url}.private")
    begun(s3, url, "0123456789abcdef/0/c/0/0/0")
    begun(s3, private, "sources.jsonl")
    with RemoteHome(url, tmp_path / "work") as home:
        home.open()
    assert s3.uploads(url) == s3.uploads(private) == []
    shards = s3.folder()
    begun(s3, shards, "shard-00000.tar")
    make_store(tmp_path / "store", 2, labelled=False)
    ones = ((1, 1, 1),) * 5
    pack(tmp_path / "store", shards, InputContract(spacing=(2.0, 2.0, 2.0)), (8, 8, 8), ones, PackConfig())
    assert s3.uploads(shards) == []


def test_a_service_that_does_not_list_uploads_ends_no_run(s3, monkeypatch, caplog):
    import s3fs

    def forbidden(self, method, *args, **kwargs):
        raise PermissionError("secret")

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", forbidden)
    RemoteFolder(f"s3://{inside(s3.folder())}").clear_uploads()
    assert "could not be looked for (PermissionError)" in caplog.text
    assert "secret" not in caplog.text


def test_what_is_no_note_is_removed_and_a_foreign_folder_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = uploads._notes()
    assert folder.stat().st_mode & 0o77 == folder.parent.stat().st_mode & 0o77 == 0
    cut = folder / f".cut.{files.HOST}.{2**22 + 1}.tmp"  # of no process
    cut.write_text('{"Bucket"')
    assert list(uploads._dead()) == []
    assert not cut.exists()
    monkeypatch.setattr(uploads.os, "getuid", lambda: 12345)
    (tmp_path / "voxscale-12345").mkdir()
    assert uploads._notes() is None
    assert list(uploads._dead()) == []
