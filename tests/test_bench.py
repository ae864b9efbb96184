"""The benchmark harness: its arithmetic, and the interface of `make bench`."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import harness


def test_ratio_is_the_median_of_neighbouring_ratios():
    assert harness.paired_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_functions_alternate_and_the_first_round_is_not_counted():
    calls = []
    ours, theirs = harness.alternate(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "abababab"
    assert len(ours) == len(theirs) == 3


def test_result_file_and_last_line_are_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.finish("x", 1.23456, 2.0, True, extra=1)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == json.loads((tmp_path / "x.json").read_text())
    assert line["ratio"] == pytest.approx(1.2346)
    assert {"name", "ratio", "goal", "ok", "machine"} <= line.keys()
    assert line["machine"]["commit"]
