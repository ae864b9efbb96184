"""Files whose names are not UTF-8, as old archives from Windows have them, are inputs like others."""

import json
import os
import shutil

import nibabel
import numpy as np
import pytest
from ingested import SMALL, bytes_of, nifti, with_key_of

from data_prep.ids import keyed_hash
from data_prep.ingest import ingest, ingest_part
from data_prep.lookup import key_of
from data_prep.part import Part
from data_prep.privacy.dates import day_number

NAME = os.fsdecode(b"M\xfcller")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A scan, its copy, a link to nothing, and a labelled case whose folder is the patient's."""
    root = tmp_path_factory.mktemp("odd") / "in"
    nifti(root / f"{NAME}.nii.gz", 0)
    shutil.copy(root / f"{NAME}.nii.gz", root / "same.nii.gz")
    (root / f"{NAME}-gone.nii").symlink_to("nowhere")
    nifti(root / NAME / "ct.nii.gz", 1)
    mask = np.zeros((12, 14, 16), np.uint8)
    mask[4:6, 5:7, 6:9] = 1
    (root / NAME / "segmentations").mkdir()
    grid = np.diag([2.0, 2.0, 3.0, 1.0])
    nibabel.Nifti1Image(mask, grid).to_filename(root / NAME / "segmentations" / "liver.nii.gz")
    return root


def test_names_that_are_not_utf8_are_names_like_others(source, tmp_path):
    store, other = tmp_path / f"{NAME}-store", tmp_path / "other"
    counts = ingest([source], store, SMALL)
    assert (counts.found, counts.accepted, counts.rejected, counts.quarantined) == (4, 2, 1, 1)
    rows = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    assert sorted(str(row["rule"]) for row in rows) == ["None", "None", "duplicate", "unreadable"]
    before = bytes_of(store)
    assert ingest([source], store, SMALL) == counts
    assert bytes_of(store) == before
    with_key_of(store, other)
    shares = [ingest_part([source], other, SMALL, Part(number, 2)) for number in (1, 2)]
    assert sum(share.inputs for share in shares) == 4
    ingest([source], other, SMALL)
    assert bytes_of(other) == before


def test_hashes_of_names_that_are_utf8_are_as_before():
    assert key_of("Müller", 3) == 10788914463601941460
    assert keyed_hash(b"key", "Müller") == "4e6ce1acb9a20ce8"
    assert day_number(b"key", "Müller", "20200101") == 729218
