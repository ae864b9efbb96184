"""Hashes made by a process of its own: right, whoever is in a hurry, and not missed when that process is gone."""

import hashlib
import mmap
import os
import threading

import pytest
import torch

from voxscale.engine import hasher
from voxscale.engine.hasher import CHUNK, Hasher
from voxscale.engine.pieces import Image, Piece
from voxscale.files import sha256_file

SIZE = 24 * CHUNK + 5


@pytest.fixture
def shared():
    handle = os.memfd_create("test")
    os.ftruncate(handle, SIZE)
    memory = mmap.mmap(handle, SIZE)
    memory[:] = os.urandom(SIZE)
    asked = Hasher(handle)
    yield asked, memory
    asked.close()


def expected(memory: mmap.mmap, size: int) -> str:
    return hashlib.sha256(memory[:size]).hexdigest()


def test_hash_is_that_of_the_first_bytes(shared):
    asked, memory = shared
    for size in (1, CHUNK - 1, CHUNK, CHUNK + 1, SIZE):
        asked.begin()
        assert asked.digest(size) == expected(memory, size)
    memory[SIZE - 1] ^= 1
    assert asked.digest(SIZE) == expected(memory, SIZE)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.004, 0.008])
def test_hurry_at_any_moment_changes_nothing(shared, delay):
    asked, memory = shared
    for _ in range(5):
        asked.begin()
        later = threading.Timer(delay, asked.hurry)
        later.start()
        assert asked.digest(SIZE) == expected(memory, SIZE)
        later.join()


def test_hurry_before_the_hash_is_asked_for_holds(shared, monkeypatch):
    asked, memory = shared
    said = []
    inner = asked._say
    monkeypatch.setattr(asked, "_say", lambda word: (said.append(word), inner(word)))
    asked.hurry()
    assert asked.digest(SIZE) == expected(memory, SIZE)
    asked.begin()
    assert asked.digest(SIZE) == expected(memory, SIZE)
    assert said == [hasher.NOW, str(SIZE).encode(), hasher.NOW, str(SIZE).encode()]


def test_hash_that_takes_long_no_longer_gives_way(shared, monkeypatch):
    asked, memory = shared
    monkeypatch.setattr(hasher, "LAZY_S", 0.0)
    assert asked.digest(SIZE) == expected(memory, SIZE)
    assert asked._urgent


def test_lost_process_is_told_and_replaced(shared, caplog):
    asked, memory = shared
    asked._process.kill()
    asked._process.wait()
    assert asked.digest(SIZE) is None
    assert "has ended" in caplog.text
    asked.hurry()
    asked.begin()
    assert asked.digest(SIZE) == expected(memory, SIZE)


def test_process_ends_with_its_rank(shared):
    asked, _ = shared
    asked._process.stdin.close()
    assert asked._process.wait(10) == 0


def test_file_is_vouched_for_even_without_the_process(tmp_path, caplog):
    image = Image()
    pieces = [Piece("weights", "a", (300_000,), 0, torch.randn(300_000))]
    for number, kill in enumerate([False, True, False]):
        image.fill(pieces)
        if kill:
            image._hasher._process.kill()
        path = tmp_path / f"{number}.safetensors"
        note = image.write(path)
        assert note == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    assert caplog.text.count("has ended") == 1
    image.close()
