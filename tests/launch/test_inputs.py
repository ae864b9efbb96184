"""Which store a changed folder of scans goes to."""

import os

from launch.inputs import generation, list_files


def files(folder):
    return list_files([folder])


def test_added_files_grow_the_same_store(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    (scans / "a").write_text("1")
    first = generation(out, "task", files(scans))
    assert generation(out, "task", files(scans)) == first
    (scans / "b").write_text("2")
    assert generation(out, "task", files(scans)) == first
    assert "scans" not in "".join(p.read_text() for p in (out / "done").iterdir())


def test_a_removed_or_changed_file_starts_a_new_store(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in "abc":
        (scans / name).write_text(name)
    first = generation(out, "task", files(scans))
    (scans / "a").unlink()
    second = generation(out, "task", files(scans))
    assert second != first
    os.utime(scans / "b", (1, 1))
    assert generation(out, "task", files(scans)) not in (first, second)


def test_each_store_has_a_memory_of_its_own(tmp_path):
    first = generation(tmp_path, "task-1", ["x"])
    assert generation(tmp_path, "task-2", ["y"]) != first
    assert generation(tmp_path, "task-1", ["x", "z"]) == first
