"""Sources that change: any file of any input is noticed without hashing the others, also while a run hashes it."""

import os
import shutil

import pytest
from ingested import SMALL, dicom_series, nifti
from object_store import inside

from data_prep import reading
from data_prep.ingest import ingest, ingest_part
from data_prep.part import Part
from voxscale.store import open_store


@pytest.fixture
def made(tmp_path):
    dicom_series(tmp_path / "in" / "a", "A")
    dicom_series(tmp_path / "in" / "b", "B", seed=1)
    nifti(tmp_path / "in" / "c.nii", 2)
    assert ingest([tmp_path / "in"], tmp_path / "store", SMALL).accepted == 3
    return tmp_path


@pytest.fixture
def hashed(monkeypatch):
    """First files of the inputs that are hashed."""
    found, real = [], reading.content_id
    monkeypatch.setattr(reading, "content_id", lambda image, label=(): found.append(image[0]) or real(image, label))
    return found


def replaced(path):
    """Put another slice of the same size and times in the place of one, as `rsync -t` and `cp -p` do."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    beside = path.with_suffix(".new")
    beside.write_bytes(data)
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    beside.replace(path)


def first_of(folder):
    return sorted(folder.iterdir())[0]


def test_a_slice_that_is_replaced_by_an_older_one_of_the_same_size_is_noticed_alone(made, hashed):
    before = set(open_store(made / "store").entries)
    replaced(sorted((made / "in" / "a").iterdir())[3])
    assert ingest([made / "in"], made / "store", SMALL).accepted == 3
    assert hashed == [first_of(made / "in" / "a")]
    assert len(before & set(open_store(made / "store").entries)) == 2


def test_a_worker_notices_it_too(tmp_path, hashed):
    dicom_series(tmp_path / "in" / "a", "A")
    for turn in range(2):
        ingest_part([tmp_path / "in"], tmp_path / "store", SMALL, Part(1, 1))
        assert len(hashed) == turn + 1
        ingest_part([tmp_path / "in"], tmp_path / "store", SMALL, Part(1, 1))
        assert len(hashed) == turn + 1
        replaced(sorted((tmp_path / "in" / "a").iterdir())[3])


def test_sources_that_are_moved_copied_or_given_other_rights_are_hashed_and_not_read(made, hashed, monkeypatch):
    ledger = (made / "store" / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(reading.Reading, "_read", None)
    shutil.copytree(made / "in", made / "copy")  # with its times
    shutil.rmtree(made / "in")
    (made / "copy").rename(made / "in")
    ingest([made / "in"], made / "store", SMALL)
    (made / "in").rename(made / "moved")
    ingest([made / "moved"], made / "store", SMALL)
    for path in (made / "moved").rglob("*.*"):
        path.chmod(0o600)
    ingest([made / "moved"], made / "store", SMALL)
    assert len(hashed) == 9
    ingest([made / "moved"], made / "store", SMALL)
    assert len(hashed) == 9
    assert (made / "store" / "ledger.jsonl").read_bytes() == ledger


def test_a_file_that_is_still_written_while_a_run_hashes_it_is_looked_at_again(tmp_path, monkeypatch):
    nifti(tmp_path / "in" / "a.nii", 0)
    file, real = tmp_path / "in" / "a.nii", reading.content_id
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])

    def late(image, label=()):
        key = real(image, label)
        file.write_bytes(whole)
        return key

    with monkeypatch.context() as patch:
        patch.setattr(reading, "content_id", late)
        patch.setattr(reading.Reading, "_parts", lambda *_: 1)
        ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    ingest([tmp_path / "in"], tmp_path / "calm", SMALL)
    assert set(open_store(tmp_path / "store").entries) == set(open_store(tmp_path / "calm").entries)


def test_a_mirror_that_is_made_again_costs_no_object_a_second_look(s3, tmp_path, hashed):
    nifti(tmp_path / "a.nii", 0)
    url = s3.folder()
    s3.file_system().put_file(str(tmp_path / "a.nii"), f"{inside(url)}/a.nii")
    for _ in range(2):
        ingest([url], tmp_path / "store", SMALL)
        assert len(hashed) == 1
        shutil.rmtree(tmp_path / "store.private" / "mirror")
