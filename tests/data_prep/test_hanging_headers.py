"""DICOM files whose headers hang their reader: what they cost is bounded, and each is told alone."""

import json
import shutil
import time
from dataclasses import replace

import poison
import pytest
from ingested import SMALL, dicom_series

from data_prep import series
from data_prep.ingest import ingest


@pytest.mark.parametrize("folders", [1, 3])
def test_many_files_that_hang_cost_the_limit_once_and_a_little_each(tmp_path, monkeypatch, folders):
    monkeypatch.setattr(series, "read_headers", poison.read_headers)
    monkeypatch.setattr(series, "ALONE_S", (1.5, 1.0))
    monkeypatch.setattr(series, "AFTERWARDS_S", 2.0)
    monkeypatch.setattr(series, "MANY", 2)
    for number in range(folders):
        folder = tmp_path / "in" / f"f{number}"
        dicom_series(folder, f"P{number}", seed=number)
        for count, path in enumerate(sorted(folder.iterdir())[1 : 1 + 12 // folders : 2]):
            shutil.copy(path, path.with_name(f"{path.stem}-hang{count}.dcm"))
    began = time.monotonic()
    counts = ingest([tmp_path / "in"], tmp_path / "store", replace(SMALL, seconds=10.0))
    took = time.monotonic() - began
    rows = [json.loads(line) for line in (tmp_path / "store" / "ledger.jsonl").read_text().splitlines()]
    hung = [row["rule"] for row in rows if row["status"] != "accepted"]
    assert counts.accepted == folders
    assert hung
    assert set(hung) <= {"timeout", "duplicate"}
    # The files alone take a process each: a third of a second on a busy machine.
    assert took < 10 + 2 * (folders - 1) + 1.5 * len(hung) + 16 * folders * 0.4 + 6
