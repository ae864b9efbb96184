"""A save: a snapshot of its step, written while training goes on, named only when all of it is flushed."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from voxscale.engine import pieces, saver
from voxscale.engine.checkpoint import Position, folder_of, latest, stored
from voxscale.engine.config import LoopConfig, OptimConfig
from voxscale.engine.pieces import Piece
from voxscale.engine.saver import Saver

WORKER = Path(__file__).parent / "worker_full.py"


class OneRank:
    """What a save asks of an engine; its weights are one tensor."""

    def __init__(self) -> None:
        self.weights = torch.zeros(5000)

    def zero_optimization_stage(self) -> int:
        return 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> OneRank:
    made = OneRank()
    monkeypatch.setattr(saver, "pieces", lambda own, _: [Piece("weights", "a", (5000,), 0, own.weights)])
    monkeypatch.setattr(saver, "buffer_pieces", lambda _: [])
    monkeypatch.setattr(saver, "updates", lambda _: 0)
    return made


def start(run: Path, engine: Any) -> Saver:
    return Saver(run, engine, OptimConfig(), LoopConfig(), {"model": "test", "contract": "none"}, Position())


def test_training_goes_on_during_a_save_and_changes_nothing_of_it(engine, tmp_path, monkeypatch):
    may_write, write = threading.Event(), pieces.write_past_cache

    def slow(path: Path, data: memoryview, size: int) -> None:
        assert may_write.wait(60)
        write(path, data, size)

    monkeypatch.setattr(pieces, "write_past_cache", slow)
    with start(tmp_path, engine) as made:
        for step in (1, 2):
            may_write.clear()
            engine.weights.fill_(step)
            made.save(Position(step, step))  # returns although nothing can be written yet
            engine.weights.fill_(100 + step)  # the next step
            assert not folder_of(tmp_path, step).exists()
            may_write.set()
            made.finish()
            assert latest(tmp_path) == folder_of(tmp_path, step)
            assert torch.equal(stored(folder_of(tmp_path, step), "weights")["a"], torch.full((5000,), float(step)))


def test_everything_is_flushed_before_the_folder_gets_its_name(engine, tmp_path, monkeypatch):
    flush, rename = os.fsync, os.rename
    flushed: list[int] = []
    named: list[int] = []
    target = folder_of(tmp_path, 1)

    def noted_flush(handle: int) -> None:
        flush(handle)
        flushed.append(os.fstat(handle).st_ino)

    def noted_rename(source: Any, to: Any) -> None:
        if Path(to) == target:
            named.append(len(flushed))
        rename(source, to)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "rename", noted_rename)
    with start(tmp_path, engine) as made:
        made.save(Position(1, 1))
        made.finish()
    (when,) = named
    inodes = {path.name: path.stat().st_ino for path in (target, *target.iterdir())}
    assert inodes.keys() == {target.name, "state-00000-of-00001.safetensors", "state.json", "manifest.json"}
    late = [name for name, inode in inodes.items() if inode not in flushed[:when]]
    assert late == []
    # The folder itself after its last file, and the one that holds its name after that.
    assert flushed[:when].index(inodes["manifest.json"]) < when - 1 - flushed[:when][::-1].index(inodes[target.name])
    assert target.parent.stat().st_ino in flushed[when:]


@pytest.mark.parametrize("who", [0, 1])
def test_failed_save_is_told_and_leaves_nothing_while_training_goes_on(ranks, tmp_path, who):
    out = ranks(WORKER, 2, str(tmp_path), str(who), expect=None)
    told = json.loads(next(line for line in out[0].splitlines() if line.startswith("{")))
    assert told["before"] == told["failed"] == ["step-00000001"]
    assert {name.split(".")[1] for name in told["seen"]} <= {"step-00000002"}  # what was begun, if it was seen
    assert told["after"] == ["step-00000001", "step-00000003"]
    assert out[0].count("checkpoint at step 2 could not be written: File too large; ") == 1
    assert "could not be written" not in out[1]


def test_next_start_removes_what_is_left_of_saves_and_nothing_else(engine, tmp_path):
    with start(tmp_path, engine) as made:
        made.save(Position(1, 1))
        made.finish()
    folder, other = tmp_path / "checkpoints", tmp_path / "other" / "checkpoints"
    for left in (
        folder / ".step-00000002.12ab34cd-2.tmp",
        folder / ".step-00000003.12ab34cd-old.tmp",
        other / ".step-1.tmp",
    ):
        left.mkdir(parents=True)
        (left / "state-00000-of-00001.safetensors").write_bytes(b"half")
    for stays in ("damaged-step-00000002-1", "notes"):
        (folder / stays).mkdir()
    with start(tmp_path, engine):
        assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-00000002-1", "notes", "step-00000001"]
        assert (other / ".step-1.tmp").is_dir()


def test_whole_checkpoint_of_the_same_step_stays(engine, tmp_path):
    target = folder_of(tmp_path, 1)
    for value in (1.0, 2.0):
        with start(tmp_path, engine) as made:
            engine.weights.fill_(value)
            made.save(Position(1, 1))
            made.finish()
        assert [path.name for path in target.parent.iterdir()] == [target.name]
        assert torch.equal(stored(target, "weights")["a"], torch.ones(5000))
