import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import limited_files

from voxscale import files
from voxscale.errors import DataError


def test_write_replaces_whole_files_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "deep" / "file.json"
    files.write_json(target, {"a": 1})
    files.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 2}
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    files.write_text(target, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.write_text(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_arrays_come_back(tmp_path):
    files.write_arrays(tmp_path / "a.npz", {"x": np.arange(3)})
    with np.load(tmp_path / "a.npz") as found:
        assert found["x"].tolist() == [0, 1, 2]


def test_folder_is_committed_and_replaced(tmp_path):
    for text in ("one", "two"):
        beside = tmp_path / ".new"
        beside.mkdir()
        (beside / "file").write_text(text)
        files.commit_folder(beside, tmp_path / "final")
        assert (tmp_path / "final" / "file").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_last_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.append_line(path, {"n": 1})
    with path.open("a") as handle:
        handle.write('{"n": 2')
    assert files.read_lines(path) == [{"n": 1}]
    files.append_line(path, {"n": 3})
    assert files.read_lines(path) == [{"n": 1}, {"n": 3}]


def test_a_line_that_the_disk_takes_in_part_leaves_nothing_and_can_be_appended_later(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.append_line(path, {"n": 1})
    with limited_files(path.stat().st_size + 4), pytest.raises(OSError, match="File too large"):
        files.append_line(path, {"n": 2})
    assert path.read_text() == '{"n": 1}\n'
    assert files.append_line(path, {"n": 3}) == b'{"n": 3}\n'
    assert files.read_lines(path) == [{"n": 1}, {"n": 3}]


def test_damage_inside_a_ledger_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\nxx\n{"n": 3}\n')
    with pytest.raises(DataError, match=r"rows.jsonl line 2 must be JSON"):
        files.read_lines(path)


@pytest.mark.parametrize("kind", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_does_not_count_as_in_use(tmp_path, monkeypatch, caplog, kind):
    """As Lustre without the option flock, or NFS whose lock server is gone."""

    def refused(*_):
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(files.fcntl, "flock", refused)
    with files.locked(tmp_path / "secret", 0.0):
        assert f"cannot be locked here ({os.strerror(kind)})" in caplog.text
    assert "secret" in caplog.text


def test_a_folder_has_one_holder_and_the_lock_dies_with_it(tmp_path):
    script = (
        "import sys; from pathlib import Path; from voxscale.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); input()"
    )
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="not in use by another live process"), files.locked(tmp_path, 0.3):
            pass
        holder.kill()
    with files.locked(tmp_path):
        pass


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        ),
        max_leaves=20,
    ),
    st.integers(1, 3),
)
def test_indented_is_what_json_writes(value, by):
    assert files.indented(value, by) == json.dumps(value, indent=by)


def test_a_folder_that_a_network_disk_cannot_empty_yet_is_left_and_other_errors_are_not_hidden(tmp_path, monkeypatch):
    for name, number in (("busy", errno.ENOTEMPTY), ("other", errno.EIO)):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "file").touch()

        def rmdir(path, *_, number=number, **__):
            raise OSError(number, os.strerror(number), path)

        monkeypatch.setattr(os, "rmdir", rmdir)
        if number == errno.ENOTEMPTY:
            files.remove_tree(tmp_path / name)
        else:
            with pytest.raises(OSError, match="Input/output"):
                files.remove_tree(tmp_path / name)
        monkeypatch.undo()
        assert (tmp_path / name).exists()
    assert not (tmp_path / "busy" / "file").exists()
    files.remove_tree(tmp_path / "busy")
    assert not (tmp_path / "busy").exists()
    files.remove_tree(tmp_path / "gone")


def test_a_folder_is_committed_over_one_that_cannot_be_removed_yet(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / f"{name}.tmp").mkdir()
        (tmp_path / f"{name}.tmp" / "file").write_text(name)
    files.commit_folder(tmp_path / "first.tmp", tmp_path / "final")

    def rmdir(path, *_, **__):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    files.commit_folder(tmp_path / "second.tmp", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "second"
