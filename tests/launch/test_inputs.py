"""Which store a changed folder of scans goes to."""

import os

import nibabel
import numpy as np

from data_prep.config import IngestConfig
from launch.inputs import generation, list_files
from launch.stages import Chain, ingest
from voxscale.store import open_store


def files(folder):
    return list_files([folder]).named


def test_added_files_grow_the_same_store(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    (scans / "a").write_text("1")
    first = generation(out, "task", files(scans))
    assert generation(out, "task", files(scans)) == first
    (scans / "b").write_text("2")
    assert generation(out, "task", files(scans)) == first
    assert "scans" not in "".join(p.read_text() for p in (out / "done").iterdir())


def test_a_removed_file_starts_a_new_store_also_if_it_came_later(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in "ab":
        (scans / name).write_text(name)
    first = generation(out, "task", files(scans))
    (scans / "c").write_text("c")
    assert generation(out, "task", files(scans)) == first
    (scans / "c").unlink()
    second = generation(out, "task", files(scans))
    assert second != first
    (scans / "c").write_text("c")
    assert generation(out, "task", files(scans)) == second


def test_a_changed_file_is_seen_and_read_in_its_place(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    (scans / "a").write_text("1")
    first, before = generation(out, "task", files(scans)), list_files([scans])
    os.utime(scans / "a", (1, 1))
    after = list_files([scans])
    assert after.named == before.named
    assert after.dated != before.dated
    assert generation(out, "task", files(scans)) == first


def test_each_store_has_a_memory_of_its_own(tmp_path):
    first = generation(tmp_path, "task-1", ["x"])
    assert generation(tmp_path, "task-2", ["y"]) != first
    assert generation(tmp_path, "task-1", ["x", "z"]) == first


def test_what_is_made_of_scans_depends_on_their_bytes_not_on_their_dates(tmp_path):
    scans, chain = tmp_path / "scans", Chain(tmp_path / "out")
    checks = IngestConfig(workers=1, gigabytes=4.0, duplicates="off")
    scans.mkdir()
    for number in range(2):
        save(scans / f"{number}.nii", number)
    first = ingest(chain, "task", [scans], checks)
    for path in scans.iterdir():
        os.utime(path, (1, 1))
    assert ingest(chain, "task", [scans], checks) == first
    save(scans / "1.nii", 2)
    second = ingest(chain, "task", [scans], checks)
    assert (second.folder, second.digest != first.digest) == (first.folder, True)
    assert len(open_store(second.folder).entries) == 2
    (scans / "1.nii").unlink()
    third = ingest(chain, "task", [scans], checks)
    assert third.folder != first.folder
    assert len(open_store(third.folder).entries) == 1


def save(path, seed):
    values = np.random.default_rng(seed).integers(0, 100, (24, 26, 28)).astype(np.int16)
    values[4:20, 4:22, 4:24] += 1000
    nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(path)
