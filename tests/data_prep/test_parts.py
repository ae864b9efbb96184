"""Workers of a part each, gathered: the same bytes as one run, and nothing read twice."""

import json
import multiprocessing
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import nibabel
import numpy as np
import poison
import pytest
from ingested import SMALL, bytes_of, nifti, sources, with_key_of

from data_prep import reading
from data_prep.config import RulesConfig
from data_prep.ids import load_key
from data_prep.ingest import ingest, ingest_part, main
from data_prep.part import Part
from data_prep.privacy.config import PrivacyConfig
from data_prep.scan import Job
from data_prep.steps import ELSEWHERE, FIELDS, VERSION
from voxscale.errors import ConfigError, DataError
from voxscale.files import commit_folder, temporary
from voxscale.io.loaded import ReadConfig


@pytest.fixture
def reads(monkeypatch):
    """Ids of the volumes that are read, as often as they are."""
    seen = []
    real = reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: seen.append(job.key) or real(self, job, now))
    return seen


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Sources, and the store of one undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    sources(folder / "in")
    ingest([folder / "in"], folder / "store", SMALL)
    return folder


@pytest.mark.parametrize("of", [1, 2, 5])
def test_parts_gathered_are_the_bytes_of_one_run(calm, tmp_path, reads, of):
    store = with_key_of(calm / "store", tmp_path / "store")
    shares = [ingest_part([calm / "in"], store, SMALL, Part(number, of)) for number in range(1, of + 1)]
    assert sum(share.inputs for share in shares) == 12
    assert not (store / "ledger.jsonl").exists()
    assert sum(share.read for share in shares) == len(reads) == len(set(reads)) == 11
    reads.clear()
    ingest([calm / "in"], store, SMALL)
    assert reads == []
    assert bytes_of(store) == bytes_of(calm / "store")
    assert not (store / "parts").exists()


def test_parts_of_an_aborted_number_are_used(calm, tmp_path, reads):
    store = with_key_of(calm / "store", tmp_path / "store")
    ingest_part([calm / "in"], store, SMALL, Part(2, 3))
    done = set(reads)
    assert done
    for number in (1, 2):
        ingest_part([calm / "in"], store, SMALL, Part(number, 4))
    ingest([calm / "in"], store, SMALL)
    assert len(reads) == len(set(reads)) == 11
    assert bytes_of(store) == bytes_of(calm / "store")
    reads.clear()
    share = ingest_part([calm / "in"], store, SMALL, Part(1, 1))
    assert (share.inputs, share.read, reads) == (12, 0, [])


def test_what_a_worker_wrote_under_other_settings_is_not_mistaken(calm, tmp_path):
    """A worker with another gate writes other voxels and pictures of the same scans under the same ids."""
    store = with_key_of(calm / "store", tmp_path / "store")
    other = replace(SMALL, privacy=PrivacyConfig(gate=False), dataset="other")
    ingest_part([calm / "in"], store, SMALL, Part(1, 1))
    ingest_part([calm / "in"], store, other, Part(1, 2))
    ingest([calm / "in"], store, SMALL)
    assert bytes_of(store) == bytes_of(calm / "store")
    ingest_part([calm / "in"], store, other, Part(1, 1))  # after the ledger was written
    ingest([calm / "in"], store, SMALL)
    assert bytes_of(store) == bytes_of(calm / "store")


def test_scans_that_only_a_worker_took_are_swept(calm, tmp_path):
    store = with_key_of(calm / "store", tmp_path / "store")
    shutil.copytree(calm / "in", tmp_path / "in")
    nifti(tmp_path / "in" / "gone.nii", 99)
    ingest_part([tmp_path / "in"], store, SMALL, Part(1, 1))
    (tmp_path / "in" / "gone.nii").unlink()
    ingest([tmp_path / "in"], store, SMALL)
    assert bytes_of(store) == bytes_of(calm / "store")


@pytest.mark.slow
def test_a_poisoned_file_costs_a_worker_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "take_in", poison.take_in)
    settings = replace(SMALL, seconds=5.0, gigabytes=2.0)
    for number in range(3):
        nifti(tmp_path / "in" / f"good{number}.nii", number)
    for number, name in enumerate(("segfault", "bomb", "hang")):
        nifti(tmp_path / "in" / f"{name}.nii", 10 + number)
    share = ingest_part([tmp_path / "in"], tmp_path / "store", settings, Part(1, 1))
    assert (share.inputs, share.read) == (6, 6)
    monkeypatch.setattr(reading.Readers, "call", None)  # the gather reads nothing
    counts = ingest([tmp_path / "in"], tmp_path / "store", settings)
    assert (counts.accepted, counts.rejected) == (3, 3)
    lines = [json.loads(line) for line in (tmp_path / "store" / "ledger.jsonl").read_text().splitlines()]
    rules = sorted(line["rule"] for line in lines if line["rule"])
    assert rules == ["out_of_memory", "reader_crashed", "timeout"]


def test_a_reader_that_is_killed_from_outside_is_tried_once_more(tmp_path, monkeypatch):
    """As when a scheduler ends all processes of a job, and the reader before the worker."""
    monkeypatch.setattr(reading, "take_in", poison.take_in)
    monkeypatch.setattr(reading, "PATIENCE_S", 0.01)
    for number, name in enumerate(("once-killed", "always-killed", "terminated")):
        nifti(tmp_path / "in" / f"{name}.nii", number)
    ingest_part([tmp_path / "in"], tmp_path / "store", SMALL, Part(1, 1))
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    lines = [json.loads(line) for line in (tmp_path / "store" / "ledger.jsonl").read_text().splitlines()]
    assert [line["rule"] for line in lines] == ["reader_killed", None, None]


def test_a_limit_that_is_raised_reads_again_what_did_not_keep_to_it(tmp_path, monkeypatch, reads):
    nifti(tmp_path / "in" / "hang.nii", 1)
    nifti(tmp_path / "in" / "good.nii", 2)
    monkeypatch.setattr(reading, "take_in", poison.take_in)
    short = replace(SMALL, seconds=3.0)
    assert ingest([tmp_path / "in"], tmp_path / "store", short).rejected == 1
    assert len(reads) == 2
    for settings in (short, replace(short, gigabytes=8.0), replace(short, seconds=1.0)):
        assert ingest([tmp_path / "in"], tmp_path / "store", settings).rejected == 1
    assert len(reads) == 2
    monkeypatch.undo()
    again = reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: reads.append(job.key) or again(self, job, now))
    assert ingest([tmp_path / "in"], tmp_path / "store", SMALL).accepted == 2
    assert len(reads) == 3


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        (replace(SMALL, workers=1, seconds=70.0, gigabytes=5.0, duplicates="off"), set()),
        (replace(SMALL, read=ReadConfig(irregular="resample")), {"good", "thin", "broken", "several"}),
        (replace(SMALL, modality="MR"), {"good", "thin", "broken", "several"}),
        (replace(SMALL, rules=RulesConfig(min_slices=7)), {"good", "thin", "several"}),
        (replace(SMALL, privacy=PrivacyConfig(gate=False)), {"good", "thin", "several"}),
        (replace(SMALL, dataset="other"), {"good", "several"}),
        (replace(SMALL, volumes=2), set()),  # 0 and 3 of 6; before it was 0, 1, 3 and 4
        (replace(SMALL, volumes=6), {"several"}),
    ],
    ids=["no step", "read", "modality", "rules", "privacy", "write", "fewer volumes", "more volumes"],
)
def test_a_change_of_one_step_redoes_what_depends_on_it(tmp_path, reads, settings, again):
    source, store = tmp_path / "in", tmp_path / "store"
    nifti(source / "good.nii", 0)
    nifti(source / "thin.nii", 1, (12, 14, 6))
    (source / "broken.nii").write_text("a text")
    values = np.stack([np.random.default_rng(n).integers(0, 1000, (12, 14, 16)).astype(np.int16) for n in range(6)], -1)
    nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(source / "several.nii")
    ingest([source], store, SMALL)
    private = [json.loads(line) for line in (tmp_path / "store.private" / "sources.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    names = {lines[row["row"]]["id"]: Path(row["path"]).stem for row in private}
    reads.clear()
    ingest([source], store, settings)
    assert {names.get(key, "several") for key in reads} == again
    assert settings.volumes != 6 or len(reads) == 2
    ingest([source], tmp_path / "fresh", settings)
    a, b = (sorted(bytes_of(folder)) for folder in (store, tmp_path / "fresh"))
    assert [name for name in a if name != "duplicates.json"] == [name for name in b if name != "duplicates.json"]
    reads.clear()
    ingest([source], store, settings)
    assert reads == []


def test_a_new_version_of_a_step_redoes_it(tmp_path, reads, monkeypatch):
    nifti(tmp_path / "in" / "good.nii", 0)
    (tmp_path / "in" / "broken.nii").write_text("a text")
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    for step, count in (("rules", 1), ("write", 1), ("privacy", 1), ("read", 2)):
        reads.clear()
        monkeypatch.setitem(VERSION, step, VERSION[step] + 1)
        ingest([tmp_path / "in"], tmp_path / "store", SMALL)
        assert len(reads) == count


def test_only_new_files_are_read(calm, tmp_path, reads):
    shutil.copytree(calm / "in", tmp_path / "in")
    store = with_key_of(calm / "store", tmp_path / "store")
    ingest([tmp_path / "in"], store, SMALL)
    reads.clear()
    for number in range(3):
        nifti(tmp_path / "in" / "new" / f"{number}.nii", 70 + number)
    before = bytes_of(store)
    for number in (1, 2):
        ingest_part([tmp_path / "in"], store, SMALL, Part(number, 2))
    assert len(reads) == 3
    ingest([tmp_path / "in"], store, SMALL)
    assert len(reads) == 3
    after = bytes_of(store)
    assert after["ledger.jsonl"].startswith(before["ledger.jsonl"])
    assert all(after[name] == data for name, data in before.items() if "/" in name and "index/" not in name)


def test_every_field_of_a_job_belongs_to_a_step():
    told = {name for names in FIELDS.values() for name in names} | set(ELSEWHERE)
    assert told == {field.name for field in fields(Job)}


def _make_key(private, start, pipe):
    start.wait()
    pipe.put(load_key(private))


def test_of_many_who_make_the_key_at_once_one_does(tmp_path):
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        start, keys = context.Event(), context.Queue()
        private = tmp_path / f"{turn}.private"
        makers = [context.Process(target=_make_key, args=(private, start, keys)) for _ in range(8)]
        for maker in makers:
            maker.start()
        start.set()
        assert len({keys.get(timeout=30) for _ in makers}) == 1
        for maker in makers:
            maker.join()
        assert [path.name for path in private.iterdir()] == ["key"]


def test_a_key_that_is_none_is_refused(tmp_path):
    (tmp_path / "key").write_text("12ab\n")
    with pytest.raises(
        DataError,
        match="must hold 32 bytes in hexadecimal digits; bring it back from a copy, or ingest into a new store",
    ):
        load_key(tmp_path)


def _commit(folder, start, text):
    start.wait()
    for _ in range(30):
        beside = temporary(folder / "scan", folder / "scratch")
        (beside / "deep").mkdir(parents=True)
        (beside / "deep" / "file").write_text(text * 1000)
        (beside / "zarr.json").write_text(text)
        commit_folder(beside, folder / "scan")


def test_many_may_commit_one_folder_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    (tmp_path / "scratch").mkdir()
    start = context.Event()
    writers = [context.Process(target=_commit, args=(tmp_path, start, str(n))) for n in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert (tmp_path / "scan" / "deep" / "file").read_text() == (tmp_path / "scan" / "zarr.json").read_text() * 1000
    assert list((tmp_path / "scratch").iterdir()) == []


def test_only_what_the_dead_left_is_cleared(tmp_path):
    nifti(tmp_path / "in" / "a.nii", 0)
    other = tmp_path / "store" / "parts" / "1-of-2"
    names = {
        f".live.{temporary(Path('x')).name.split('.')[2]}.{os.getppid()}.tmp": True,
        f".dead.{temporary(Path('x')).name.split('.')[2]}.4194399.tmp": False,
        ".far.other-host.12.tmp": True,
        ".old.other-host.13.tmp": False,
    }
    for name in names:
        (other / name).mkdir(parents=True)
    os.utime(other / ".old.other-host.13.tmp", (1e9, 1e9))
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    assert {path.name for path in other.iterdir()} == {name for name, stays in names.items() if stays}


def test_command_line(calm, tmp_path, capsys):
    store = with_key_of(calm / "store", tmp_path / "store")
    for number in (1, 2):
        assert main([str(calm / "in"), str(store), "--part", f"{number}/2", "--workers", "1"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["part"] for line in told] == ["1-of-2", "2-of-2"]
    assert sum(line["inputs"] for line in told) == 12
    assert main([str(calm / "in"), str(store)]) == 0
    assert bytes_of(store) == bytes_of(calm / "store")
    with pytest.raises(ConfigError, match="part must be K/N"):
        main([str(calm / "in"), str(store), "--part", "3/2"])
