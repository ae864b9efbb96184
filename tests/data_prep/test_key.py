"""The secret key of a store: lost or exchanged it is missed, as names of subjects depend on it."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from ingested import SMALL, bytes_of, nifti
from object_store import inside

from data_prep.ingest import ingest, ingest_part
from data_prep.part import Part
from voxscale.errors import DataError
from voxscale.store_root import read_root


@pytest.fixture
def source(tmp_path):
    for number in range(2):
        nifti(tmp_path / "in" / f"good{number}.nii.gz", number)
    return tmp_path / "in"


def test_a_lost_key_is_missed_and_brought_back(source, tmp_path):
    store, key = tmp_path / "store", tmp_path / "store.private" / "key"
    ingest([source], store, SMALL)
    before, held = bytes_of(store), key.read_bytes()
    nifti(source / "good2.nii.gz", 2)
    for lose in (key.unlink, lambda: shutil.rmtree(key.parent)):
        lose()
        for run in (ingest, lambda *all_: ingest_part(*all_, Part(1, 2))):
            with pytest.raises(
                DataError, match=r"store.private/key must be there, .*bring it back from a copy"
            ) as told:
                run([source], store, SMALL)
            assert told.value.reason == "no_key"
            assert not key.exists()
        assert bytes_of(store) == before
    key.write_bytes(held)
    assert ingest([source], store, SMALL).accepted == 3
    plain = tmp_path / "plain"
    key.parent.rename(tmp_path / "plain.private")
    (tmp_path / "plain.private" / "sources.jsonl").unlink()
    ingest([source], plain, SMALL)
    assert bytes_of(plain) == bytes_of(store)


def test_a_key_lost_before_anything_is_gathered_is_missed_too(source, tmp_path):
    ingest_part([source], tmp_path / "store", SMALL, Part(1, 1))
    (tmp_path / "store.private" / "key").unlink()
    with pytest.raises(DataError, match="store.private/key must be there"):
        ingest([source], tmp_path / "store", SMALL)


def test_another_stores_key_is_refused(source, tmp_path):
    for name in ("store", "other"):
        ingest([source], tmp_path / name, SMALL)
    roots = [read_root(tmp_path / name)["key"] for name in ("store", "other")]
    assert roots[0] != roots[1]
    keys = [(tmp_path / f"{name}.private" / "key").read_text().strip() for name in ("store", "other")]
    assert all(mark not in key and len(mark) == 16 for mark in roots for key in keys)
    shutil.copy(tmp_path / "other.private" / "key", tmp_path / "store.private" / "key")
    with pytest.raises(DataError, match=r"store.private/key must be the key that the store was made with") as told:
        ingest([source], tmp_path / "store", SMALL)
    assert told.value.reason == "other_key"


def exchange(store, other):
    """Put another store's key in the place of one; returns that one."""
    key, before = store.with_name("store.private") / "key", (store.with_name("store.private") / "key").read_bytes()
    shutil.copy(other.with_name("other.private") / "key", key)
    return before


@pytest.mark.parametrize("where", ["folder", "url"])
def test_a_key_that_is_exchanged_before_anything_is_gathered_is_refused_too(source, tmp_path, s3, where):
    store = tmp_path / "store" if where == "folder" else s3.folder()
    ingest_part([source], store, SMALL, Part(1, 2), tmp_path / "work")
    ingest_part([source], store, SMALL, Part(2, 2), tmp_path / "work")
    ingest_part([source], tmp_path / "other", SMALL, Part(1, 1))
    theirs = (tmp_path / "other.private" / "key").read_bytes()
    if where == "folder":
        held = exchange(store, tmp_path / "other")
    else:
        system, key = s3.file_system(), f"{inside(store)}.private/key"
        held = system.cat_file(key)
        system.pipe_file(key, theirs)
    for run in (ingest, lambda source, store, settings, work: ingest_part(source, store, settings, Part(1, 2), work)):
        with pytest.raises(DataError, match="private/key must be the key that the store was made with") as told:
            run([source], store, SMALL, tmp_path / "work")
        assert told.value.reason == "other_key"
    if where == "folder":
        (tmp_path / "store.private" / "key").write_bytes(held)
    else:
        system.pipe_file(key, held)
    assert ingest([source], store, SMALL, tmp_path / "work").accepted == 2


def test_what_one_of_several_keys_made_is_kept_and_the_rest_read_again(source, tmp_path):
    """As where a service ignores the condition of a write, and two workers have made a key each."""
    store, other = tmp_path / "store", tmp_path / "other"
    ingest_part([source], store, SMALL, Part(1, 1))
    ingest_part([source], other, SMALL, Part(1, 1))
    for log in (other / "parts" / "1-of-1").glob("*.jsonl"):
        shutil.copy(log, store / "parts" / "1-of-1")
    exchange(store, other)
    assert ingest([source], store, SMALL).accepted == 2
    ingest([source], other, SMALL)
    assert bytes_of(store) == bytes_of(other)


def test_a_lost_key_of_a_store_with_its_mark_alone_is_missed_and_none_is_made(source, tmp_path):
    ingest([source], tmp_path / "store", SMALL)
    (tmp_path / "store" / "ledger.jsonl").unlink()
    (tmp_path / "store.private" / "key").unlink()
    with pytest.raises(DataError, match="store.private/key must be there"):
        ingest([source], tmp_path / "store", SMALL)
    assert [path.name for path in (tmp_path / "store.private").iterdir()] == ["sources.jsonl"]


def test_a_store_of_an_earlier_version_gets_the_mark_of_its_key(source, tmp_path):
    ingest([source], tmp_path / "store", SMALL)
    file = tmp_path / "store" / "zarr.json"
    whole = file.read_text()
    told = json.loads(whole)
    del told["attributes"]["voxscale"]["key"], told["attributes"]["crc32c"]
    file.write_text(json.dumps(told))
    assert "key" not in read_root(tmp_path / "store")
    ingest([source], tmp_path / "store", SMALL)
    assert file.read_text() == whole


def test_a_lost_key_behind_a_url_is_missed(source, tmp_path, s3):
    store = s3.folder()
    ingest([source], store, SMALL, tmp_path / "work")
    before = s3.objects(store)
    s3.file_system().rm(f"{inside(store)}.private/key")
    with pytest.raises(DataError, match=r"private/key must be there") as told:
        ingest([source], store, SMALL, tmp_path / "work")
    assert told.value.reason == "no_key"
    assert s3.objects(store) == before
    assert not s3.file_system().exists(f"{inside(store)}.private/key")


def test_every_changed_byte_of_a_stores_own_attributes_is_told(source, tmp_path):
    ingest([source], tmp_path / "store", SMALL)
    file = tmp_path / "store" / "zarr.json"
    whole, root = file.read_bytes(), read_root(tmp_path / "store")
    told = []
    for place in range(len(whole)):
        for bit in (1, 4):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                assert read_root(tmp_path / "store") == root  # a space that became another
            except DataError as error:
                told.append(error.reason)
    assert len(told) > len(whole)
    assert set(told) == {"corrupt", "not_a_store", "bad_schema"}
    file.write_bytes(whole.replace(b'"schema": 3', b'"schema": 3, "contract": null'))
    with pytest.raises(
        DataError, match=r"zarr.json must be as it was written; remove it, then run ingest on all of its sources"
    ):
        ingest([source], tmp_path / "store", SMALL)
    file.unlink()
    ingest([source], tmp_path / "store", SMALL)
    assert file.read_bytes() == whole


def test_names_of_classes_come_back_with_the_attributes(tmp_path):
    """Also of values that no task declares, whose scans need no second look."""
    nifti(tmp_path / "in" / "images" / "a.nii.gz", 0)
    image = nibabel.load(tmp_path / "in" / "images" / "a.nii.gz")
    label = np.zeros(image.shape, np.uint8)
    label[2:5, 2:5, 2:5] = 3
    (tmp_path / "in" / "labels").mkdir()
    nibabel.Nifti1Image(label, image.affine).to_filename(tmp_path / "in" / "labels" / "a.nii.gz")
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    before = bytes_of(tmp_path / "store")
    assert read_root(tmp_path / "store")["classes"] == {"3": "3"}
    (tmp_path / "store" / "zarr.json").unlink()
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    assert bytes_of(tmp_path / "store") == before
