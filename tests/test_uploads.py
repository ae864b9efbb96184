"""Large objects go to a real server in pieces and come in a stream: memory does not grow with them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from object_store import inside, requests

from voxscale import remote
from voxscale.remote import RemoteFolder

MOST = 4 * remote.PIECES * remote.PIECE
"""Bytes of memory beside what a small object needs; the library's own way takes about twice an object of 100 MB."""
SIZE = 192 << 20

WATCHED = """
import sys
from pathlib import Path
from voxscale.remote import RemoteFolder


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


folder, large, small, back = RemoteFolder(sys.argv[1]), *map(Path, sys.argv[2:])
for do in (lambda file: folder.put_some({"large": file}), lambda _: folder.fetch("large", back)):
    folder.put_some({"small": small})  # what is imported and connected once is not the object's
    Path("/proc/self/clear_refs").write_text("5")
    idle = status("VmRSS")
    do(large)
    print(status("VmHWM") - idle)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_of_an_upload_and_a_download_is_bounded(s3, tmp_path):
    url, root = s3.folder(), Path(__file__).resolve().parents[1]
    large, small, back = (tmp_path / name for name in ("large", "small", "back"))
    large.write_bytes(np.random.default_rng(0).bytes(SIZE))
    small.write_bytes(bytes(100))
    command = [sys.executable, "-c", WATCHED, f"s3://{inside(url)}", str(large), str(small), str(back)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    up, down = map(int, done.stdout.split())
    assert up < MOST, (up, down)
    assert down < MOST, (up, down)
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(large.read_bytes()).digest()
    s3.file_system().rm(inside(url), recursive=True)


def test_an_object_in_pieces_is_the_same(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 5 << 20)  # S3 takes no smaller ones but the last
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


def test_pieces_grow_where_there_would_be_too_many(tmp_path):
    system = RemoteFolder("s3://bucket/folder").system()[0]
    assert remote._pieces(system, 10**9) == {"chunksize": remote.PIECE, "max_concurrency": remote.PIECES}
    large = remote._pieces(system, 10**12)["chunksize"]
    assert large * remote.MOST_PIECES >= 10**12
    assert remote._pieces(RemoteFolder(f"file://{tmp_path}").system()[0], 10**12) == {}
