"""SIGKILL at random moments: ingest and pack, alone and in parts, end with the bytes of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_prep import reading
from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from data_prep.plan import plan_task
from voxscale.config import save_json
from voxscale.contract import InputContract

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
pytestmark = pytest.mark.slow()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Scans, two of them equal, one flat; the store and the shards of undisturbed runs, and their seconds."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "in").mkdir()
    for number in range(8):
        values = np.random.default_rng(number).integers(-1000, -900, (40, 44, 48)).astype(np.int16)
        values[4:36, 4:40, 4:44] += 1000
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(folder / "in" / f"s{number}.nii")
    shutil.copy(folder / "in" / "s2.nii", folder / "in" / "s6_same.nii")
    flat = nibabel.Nifti1Image(np.ones((12, 12, 12), np.uint8), np.eye(4))
    flat.to_filename(folder / "in" / "s4_flat.nii")
    counts = ingest([folder / "in"], folder / "store", IngestConfig(workers=2))
    assert (counts.accepted, counts.rejected, counts.quarantined) == (8, 1, 1)
    shutil.copytree(folder / "store", folder / "planned")
    save_json(plan_task(folder / "planned", 16**3, InputContract(spacing=(2.0, 2.0, 2.0))), folder / "plan.json")
    subprocess.run(packing(folder, folder / "shards"), cwd=ROOT, check=True, capture_output=True)
    return folder


def ingesting(calm, store, *more):
    command = [sys.executable, "-m", "data_prep", "ingest", calm / "in", store, "--workers", "2", *more]
    return list(map(str, command))


def packing(calm, shards, *more):
    command = [sys.executable, "-m", "data_prep", "pack", calm / "planned", shards, "--plan", calm / "plan.json"]
    return list(map(str, [*command, "--shard-mb", "1", *more]))


def kill_all(commands, work_began, wait_s):
    """Start commands, let them work for a while, end them all; returns whether any was still at it."""
    started = [
        subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    deadline = time.monotonic() + 60
    while not work_began() and any(p.poll() is None for p in started) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(wait_s)
    alive = [process for process in started if process.poll() is None]
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return bool(alive)


def bytes_of(folder, but):
    """Every file but those of workers."""
    files = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] != but]
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in files}


def logged(store):
    """How often each volume was begun, and those of which the result is known, from the logs of all workers."""
    begun, ended = Counter(), Counter()
    for path in (store / "parts").glob("*/*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                (ended if "row" in row else begun)[row["id"]] += 1
    return begun, ended


@pytest.mark.parametrize("parts", [0, 2], ids=["plain", "parts"])
def test_ingest(calm, tmp_path, monkeypatch, parts):
    store, draw = tmp_path / "store", random.Random(parts)
    store.with_name("store.private").mkdir(mode=0o700)
    shutil.copy(calm / "store.private" / "key", tmp_path / "store.private" / "key")
    names = [["--part", f"{number + 1}/{parts}"] for number in range(parts)] or [[]]
    finished, kills = set(), 0
    for _ in range(ROUNDS):
        before = len(list((store / "parts").glob("*/*.jsonl")))
        begun = lambda before=before: len(list((store / "parts").glob("*/*.jsonl"))) > before  # noqa: E731
        kills += kill_all([ingesting(calm, store, *name) for name in names], begun, draw.uniform(0.0, 0.6))
        _, ended = logged(store)
        # Two workers that hold the two equal files may both have read them; nothing else is read twice.
        assert sum(ended.values()) - len(ended) <= (1 if parts else 0)
        assert finished <= set(ended) or not (store / "parts").exists()
        finished |= set(ended)
    assert kills >= 2
    read = []
    real = reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: read.append(job.key) or real(self, job, now))
    counts = ingest([calm / "in"], store, IngestConfig(workers=2))
    assert (counts.accepted, counts.rejected, counts.quarantined) == (8, 1, 1)
    assert finished.isdisjoint(read)
    assert len(finished) + len(read) == 9
    assert bytes_of(store, "parts") == bytes_of(calm / "store", "parts")


@pytest.mark.parametrize("parts", [0, 2], ids=["plain", "parts"])
def test_pack(calm, tmp_path, parts):
    shards, draw, kills, whole = tmp_path / "shards", random.Random(10 + parts), 0, {}
    names = [["--part", f"{number + 1}/{parts}"] for number in range(parts)] or [[]]
    for _ in range(ROUNDS):
        kills += kill_all([packing(calm, shards, *name) for name in names], shards.exists, draw.uniform(0.0, 0.4))
        for path in shards.glob("*.index.json"):
            tar = path.with_name(path.name.replace(".index.json", ".tar"))
            assert whole.setdefault(tar.name, tar.stat().st_mtime_ns) == tar.stat().st_mtime_ns  # not written twice
    assert kills >= 2
    subprocess.run(packing(calm, shards), cwd=ROOT, check=True, capture_output=True)
    assert bytes_of(shards, ".parts") == bytes_of(calm / "shards", ".parts")
    assert all((shards / name).stat().st_mtime_ns == when for name, when in whole.items())
