"""The ledger keeps little in memory, and gives back what it wrote."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data_prep import reading
from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from data_prep.ledger import Ledger
from data_prep.lookup import Lookup, key_of
from data_prep.rows import Rows, digest_of, line_of
from data_prep.source import Source
from data_prep.steps import Outcome, made_of, verdict

ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import gc, sys
from pathlib import Path
import psutil
from data_prep.ledger import Ledger
from data_prep.lookup import key_of
from data_prep.results import Results
store, private = map(Path, sys.argv[1:])
rss = psutil.Process().memory_info
before = rss().rss
ledger = Ledger(store, private, None)
gc.collect()
between = rss().rss
results = Results(store, private, "gather", 60)
gc.collect()
steps = {name: "0" * 12 for name in ("read", "rules", "privacy", "write")}
found = [results.find(f"{key_of(n):016x}", steps, {"seconds": 1.0, "gigabytes": 1.0}) for n in range(100)]
print(between - before, rss().rss - between, 2000 * sum(each is not None for each in found))
"""
"""Resident bytes of a ledger, of logs, and how many rows of the logs are found, in a fresh process."""

ENTRY = {"percentiles": {str(p): 1.5 for p in range(9)}}


def outcome(number):
    return Outcome(verdict("accepted", None, None) | {"entry": ENTRY | {"number": number}}, steps={"read": "0" * 12})


def input_of(number, folder=Path("/data/some/long/folder/of/scans")):
    path = folder / f"patient-{number:07d}" / "image.nii.gz"
    return Source((path,), path.name, "image")


@pytest.mark.slow
def test_memory_for_each_row_is_as_stated(tmp_path):
    """200,000 rows, those of the ledger and those of a worker's log; docs/design.md states the figures."""
    count = 200_000
    steps = dict.fromkeys(("read", "rules", "privacy", "write"), "0" * 12)
    state = {"files": 1, "state": "00"}
    for folder in ("store", "private", "store/parts/1-of-2", "private/parts/1-of-2"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with (
        (tmp_path / "store" / "ledger.jsonl").open("wb") as ledger,
        (tmp_path / "private" / "sources.jsonl").open("wb") as sources,
        (tmp_path / "store" / "parts" / "1-of-2" / "log.jsonl").open("wb") as log,
        (tmp_path / "private" / "parts" / "1-of-2" / "log.jsonl").open("wb") as inputs,
    ):
        for number in range(count):
            key, path = f"{key_of(number):016x}", str(input_of(number).files[0])
            row = {"id": key, "kind": "image", **outcome(number).row, "part": 0}
            kept = {"path": path, "part": 0, "taken": 1, "parts": 1, "content": key, **state, "steps": steps}
            sources.write(line_of(kept | {"limit": None, "row": number, "hash": digest_of(line_of(row))}))
            ledger.write(line_of(row))
            log.write(
                line_of({"id": key, "made": made_of(steps), "parts": 1, "limit": None, "steps": steps, "row": row})
            )
            inputs.write(line_of({"path": path, **state, "id": key}))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "store"), str(tmp_path / "private")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    of_ledger, of_log, found = (float(value) / count for value in done.stdout.split())
    print(f"{of_ledger:.0f} bytes for a row of the ledger, {of_log:.0f} for one of a log")
    assert found == 1
    assert 100 < of_ledger < 300
    assert 30 < of_log < 100
    known = Ledger(tmp_path / "store", tmp_path / "private", None)
    assert known.rows.row(123)["entry"]["number"] == 123
    assert known.told(input_of(count - 1))[0]["row"] == count - 1


def test_rows_come_back_through_replacing_and_opening_again(tmp_path):
    changes = []
    (tmp_path / "a").mkdir()
    ledger = Ledger(tmp_path, tmp_path / "a", lambda: changes.append(1))
    for number in range(20):
        ledger.write(input_of(number, tmp_path), f"{number:016x}", [(f"{number:016x}", 0, outcome(number))])
    assert changes == [1]
    for number in range(0, 20, 3):
        ledger.write(input_of(number, tmp_path), f"{number:016x}", [(f"{number:016x}", 0, outcome(100 + number))])
    wanted = [number + 100 * (number % 3 == 0) for number in range(20)]
    assert [ledger.rows.row(place)["entry"]["number"] for place in range(20)] == wanted
    ledger.rows.flush()
    assert [ledger.rows.row(place)["entry"]["number"] for place in range(20)] == wanted
    again = Rows(tmp_path / "ledger.jsonl", mend=False)
    assert [again.row(place)["entry"]["number"] for place in range(20)] == wanted
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["entry"]["number"] for line in lines] == wanted


def test_lookup_finds_every_row_of_a_key_in_order():
    draw = np.random.default_rng(0)
    keys = [*draw.integers(0, 2**64, 50, dtype=np.uint64).tolist(), 0, 2**64 - 1]
    lookup, wanted = Lookup(2), {}
    for number in range(500):
        key = keys[int(draw.integers(len(keys)))]
        lookup.add(key, number, 2**64 - 1 - number)
        wanted.setdefault(key, []).append((number, 2**64 - 1 - number))
    assert all(lookup.find(key) == wanted.get(key, []) for key in [*keys, 12345])
    assert Lookup(1).find(3) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_volumes_are_read_at_once_than_there_are_workers(tmp_path, monkeypatch, workers):
    """A volume is in memory only in its reader process, and each worker thread has one of these at most."""
    import nibabel

    (tmp_path / "in").mkdir()
    for number in range(3 * workers):
        values = np.random.default_rng(number).integers(0, 1000, (12, 14, 16)).astype(np.int16)
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(tmp_path / "in" / f"{number}.nii")
    alive, most, lock, real = [0], [0], threading.Lock(), reading.Readers.call

    def counted(*args):
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        try:
            return real(*args)
        finally:
            with lock:
                alive[0] -= 1

    monkeypatch.setattr(reading.Readers, "call", counted)
    settings = IngestConfig(workers=workers, gigabytes=4.0)
    assert ingest([tmp_path / "in"], tmp_path / "store", settings).accepted == 3 * workers
    assert most[0] == workers
