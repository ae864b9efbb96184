"""Which checkpoints stay, and what a run says that may not write any."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from voxscale.engine.checkpoint import step_of, superseded
from voxscale.errors import system_error_text

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "worker_keep.py"


@pytest.fixture(scope="module")
def told(ranks, tmp_path_factory):
    (out,) = ranks(WORKER, 1, str(tmp_path_factory.mktemp("runs")), expect=None)
    return json.loads(next(line for line in out.splitlines() if line.startswith("{"))), out


def test_the_newest_and_every_third_stay(told):
    values, _ = told
    assert values["kept_wrong"] == ""
    assert values["kept"] == [f"step-{step:08d}" for step in (3, 6, 7, 8)]


def test_a_folder_that_may_not_be_written_is_named_as_such_and_the_run_goes_on(told):
    values, out = told
    assert values["closed"] == ["step-00000003"]
    said = values["closed_wrong"]
    right = "Permission denied; give this user the right to read and write there"
    assert said.startswith(f"checkpoint at step 9 must be written whole, but: {right}; then start again"), said
    assert "free some disk" not in out
    for step in (6, 9):
        assert out.count(f"checkpoint at step {step} could not be written: {right}; training goes on") == 1
    assert values["opened_wrong"] == ""
    assert values["opened"] == ["step-00000006", "step-00000009"]


def test_old_checkpoint_that_cannot_be_removed_is_told_apart_from_a_save_that_failed(told):
    values, out = told
    assert values["stuck_wrong"] == values["freed_wrong"] == ""
    *left, before, newest = values["stuck"]
    assert (before, newest) == ("step-00000009", "step-00000012")
    assert [re.sub(r"[0-9a-f]{8}-old", "X", name) for name in left] == [".step-00000003.X.tmp"]
    assert "older checkpoints could not be removed and take room: Permission denied; give this user" in out
    assert "checkpoint at step 12 could not" not in out
    assert values["freed"] == ["step-00000012", "step-00000015"]


@pytest.mark.parametrize(
    ("number", "help_"),
    [
        (errno.ENOSPC, "free some disk"),
        (errno.EROFS, "mounted for writing"),
        (errno.EACCES, "the right to read and write"),
        (errno.EIO, "see that the disk is mounted and works"),
    ],
)
def test_each_trouble_with_files_has_its_own_remedy_and_no_path(number, help_):
    said = system_error_text(OSError(number, os.strerror(number), "/home/patient"))
    assert re.match(rf"files must be readable and writable, but: {os.strerror(number)}; .*{help_}", said)
    assert "patient" not in said
    assert ("free some disk" in said) == (number == errno.ENOSPC)


def saved(folder: Path, step: int, in_a_row: int | None) -> Path:
    """A checkpoint of a step as far as keeping goes; None: its state cannot be read."""
    path = folder / f"step-{step:08d}"
    path.mkdir()
    state = {"position": {"step": step, "extra": {"guard": {"in_a_row": in_a_row}}}}
    (path / "state.json").write_text("{" if in_a_row is None else json.dumps(state))
    return path


@pytest.mark.parametrize(
    ("rows", "every", "gone"),
    [
        ({2: 0, 4: 0, 6: 0}, 0, [2]),
        ({2: 0, 4: 0, 6: 1}, 0, []),  # 2 and 4 may have to be gone back to, 6 is where the run goes on
        ({2: 0, 4: 0, 6: 1, 7: 2}, 0, [6]),
        ({2: 0, 4: 0, 6: 1, 8: 0}, 0, [2, 6]),
        ({2: 0, 4: None, 6: 0, 8: 0}, 0, [2]),  # one that cannot be read is neither counted nor deleted
        ({2: 0, 4: 0, 6: 0, 8: 0, 9: 1}, 4, [2]),
        ({2: 0, 3: 1, 4: 1, 6: 0, 8: 0, 10: 0}, 4, [2, 3, 6]),
    ],
)
def test_good_checkpoints_stay_beside_suspected_ones(tmp_path, rows, every, gone):
    found = [saved(tmp_path, step, in_a_row) for step, in_a_row in rows.items()]
    assert sorted(map(step_of, superseded(found, 2, every))) == gone
