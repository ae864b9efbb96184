"""Poisoned 2D images and labels: each costs its own row of the ledger, whoever reads it, and nothing else."""

import gzip
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import poison
import pytest
from ingested import SMALL, bytes_of, nifti, with_key_of
from PIL import Image

from data_prep import reading
from data_prep.ingest import ingest, ingest_part
from data_prep.part import Part
from voxscale.store import open_store

LIMITS = replace(SMALL, seconds=5.0, gigabytes=2.0)
BAD = {"segfault": "reader_crashed", "bomb": "out_of_memory", "hang": "timeout"}


def picture(root: Path, name: str, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (40, 48)).astype(np.uint8)
    root.mkdir(exist_ok=True)
    Image.fromarray(values).save(root / f"{name}.png")


def labelled(root: Path, name: str, seed: int) -> None:
    nifti(root / "images" / f"{name}.nii.gz", seed)
    label = np.zeros((12, 14, 16), np.uint8)
    label[4:8, 4:8, 5 : 8 + seed % 2] = 1
    (root / "labels").mkdir(exist_ok=True)
    nibabel.Nifti1Image(label, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(root / "labels" / f"{name}.nii.gz")


def rules(store: Path) -> dict[str, str | None]:
    """Why each file was left out, by the name of its image."""
    private = store.with_name(f"{store.name}.private") / "sources.jsonl"
    rows = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    told = [json.loads(line) for line in private.read_text().splitlines()]
    return {Path(row["path"]).name.partition(".")[0]: rows[row["row"]]["rule"] for row in told}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pictures", "labels"])
def test_a_file_that_ends_its_reader_is_charged_alone_by_a_run_and_by_workers(tmp_path, monkeypatch, kind):
    """The labels crash, fill the memory and hang while the images beside them are good."""
    make, take_in = (picture, poison.take_in) if kind == "pictures" else (labelled, poison.take_in_labels)
    monkeypatch.setattr(reading, "take_in", take_in)
    source = tmp_path / "in"
    for number, name in enumerate(("good0", "good1", *BAD)):
        make(source, name, number)
    counts = ingest([source], tmp_path / "store", LIMITS)
    assert (counts.found, counts.accepted, counts.rejected, counts.orphan_labels) == (5, 2, 3, 0)
    assert rules(tmp_path / "store") == BAD | {"good0": None, "good1": None}
    store = open_store(tmp_path / "store")
    for key, entry in store.entries.items():
        assert entry.planar == (kind == "pictures")
        assert store.read(key).size
        assert kind == "pictures" or store.read_label(key).max() == 1
    other = with_key_of(tmp_path / "store", tmp_path / "other")
    for number in (1, 2):
        ingest_part([source], other, LIMITS, Part(number, 2))
    monkeypatch.setattr(reading, "run_isolated", None)  # the gather reads nothing
    monkeypatch.setattr(reading.Readers, "call", None)
    ingest([source], other, LIMITS)
    assert bytes_of(other) == bytes_of(tmp_path / "store")


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pictures_that_announce_too_much_or_end_early_are_charged_alone(tmp_path):
    """Files as they may come: a bomb, one that is cut, one whose bytes are no picture, one with a flipped bit."""
    source = tmp_path / "in"
    for number in range(2):
        picture(source, f"good{number}", number)
    (source / "wide.png").write_bytes(png(60_000, 60_000, zlib.compress(bytes(1 << 20))))
    (source / "negative.png").write_bytes(png(0xFFFFFFFF, 0xFFFFFFFF, b""))
    whole = (source / "good0.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "text.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture" * 50)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    (source / "flipped.png").write_bytes(flipped)
    counts = ingest([source], tmp_path / "store", SMALL)
    assert (counts.found, counts.accepted, counts.rejected) == (7, 2, 5)
    found = rules(tmp_path / "store")
    assert (found.pop("good0"), found.pop("good1")) == (None, None)
    assert found["wide"] == "too_large"
    assert found["cut"] == "truncated"
    assert {*found.values()} <= {"too_large", "truncated", "unreadable"}


def test_labels_that_announce_too_much_or_end_early_are_charged_with_their_image_alone(tmp_path):
    source = tmp_path / "in"
    for number, name in enumerate(("good0", "good1", "huge", "cut", "flipped", "zeros")):
        labelled(source, name, number)
    folder = source / "labels"
    whole = gzip.decompress((folder / "good0.nii.gz").read_bytes())
    header = bytearray(whole[:352])
    struct.pack_into("<8h", header, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    (folder / "huge.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(1000)))
    (folder / "cut.nii.gz").write_bytes((folder / "cut.nii.gz").read_bytes()[:-40])
    flipped = bytearray((folder / "flipped.nii.gz").read_bytes())
    flipped[-60] ^= 16
    (folder / "flipped.nii.gz").write_bytes(flipped)
    struct.pack_into("<8h", header, 40, 3, 2000, 1000, 1000, 1, 1, 1, 1)  # 2 GB, all of them there
    bomb = gzip.compress(bytes(header)) + gzip.compress(bytes(80_000_000), 1) * 25
    (folder / "zeros.nii.gz").write_bytes(bomb)
    counts = ingest([source], tmp_path / "store", replace(SMALL, gigabytes=1.0))
    assert (counts.found, counts.accepted, counts.rejected) == (6, 2, 4)
    found = rules(tmp_path / "store")
    assert (found.pop("good0"), found.pop("good1")) == (None, None)
    assert found == {"cut": "truncated", "flipped": "corrupt", "huge": "truncated", "zeros": "out_of_memory"}
    assert len(open_store(tmp_path / "store").entries) == 2
