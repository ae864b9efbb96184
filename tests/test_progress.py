import re

import pytest

from voxscale import progress
from voxscale.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_rate_and_remaining_time(clock, capsys, monkeypatch):
    monkeypatch.delenv("VOXSCALE_TTY", raising=False)
    with Progress("pack", 10, "scans") as bar:
        clock[0] += 2
        bar.advance(2)  # too soon for a line
        clock[0] += 18
        bar.advance(2, note="loss 0.5")
        clock[0] += 10
        bar.advance(6)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pack: 4/10 scans, 0.20 scans/s, 30 s left, loss 0.5",
        "pack: 10/10 scans, 0.33 scans/s, done in 30.0 s",
    ]


def test_work_done_before_counts_for_the_total_but_not_for_the_rate(clock, capsys):
    with Progress("pretrain", 10, "steps", done=6) as bar:
        clock[0] += 4
        bar.advance(4)
    assert capsys.readouterr().err == "pretrain: 10/10 steps, 1.00 steps/s, done in 4.0 s\n"


def test_other_ranks_are_silent_and_a_failed_stage_has_no_last_line(capsys):
    with Progress("pretrain", 2, "steps", show=False) as bar:
        bar.advance(2)
    with pytest.raises(ValueError, match="x"), Progress("pack", 2, "scans"):
        raise ValueError("x")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_rate_and_remaining_time(capsys, monkeypatch):
    monkeypatch.setenv("VOXSCALE_TTY", "1")
    with Progress("pack", 4, "scans") as bar:
        bar.advance(4, note="loss 0.5")
    shown = capsys.readouterr().err
    assert re.search(r"pack +: 100%\|.*\| 4/4 \[.*scans/s.*loss 0\.5", shown)
