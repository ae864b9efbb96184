import numpy as np
import pytest
from privacy_head import head

from data_prep.privacy.config import PrivacyConfig
from data_prep.privacy.dates import day_number
from data_prep.privacy.gate import pass_gate
from voxscale.errors import DataError
from voxscale.volume import Volume

KEY = b"k" * 32


def volume():
    values, _, _ = head("CT")
    stored = np.rint(values).astype(np.int16)
    return Volume(stored, np.diag([2.0, 1.5, 1.5, 1.0]), "CT"), stored.astype(np.float32)


def test_each_policy_for_a_face():
    scan, values = volume()
    blank = pass_gate(scan, values, PrivacyConfig(ocr="off"))
    assert (blank.privacy.face, blank.privacy.passed) == ("defaced", True)
    assert blank.removed is not None
    assert blank.privacy.removed == blank.removed.sum()
    assert (blank.volume.voxels[blank.removed] == -1000).all()
    assert (blank.values[blank.removed] == -1000).all()
    assert np.array_equal(blank.volume.voxels[~blank.removed], scan.voxels[~blank.removed])
    assert "blanked" in blank.notes[0]
    kept = pass_gate(scan, values, PrivacyConfig(ocr="off", face="allow"))
    assert (kept.privacy.face, kept.removed, kept.volume) == ("allowed", None, scan)
    with pytest.raises(DataError, match="must not show a face") as error:
        pass_gate(scan, values, PrivacyConfig(ocr="off", face="block"))
    assert error.value.reason == "face"


def test_without_the_gate_nothing_has_passed():
    scan, values = volume()
    assert not pass_gate(scan, values, PrivacyConfig(gate=False)).privacy.passed


def test_days_keep_their_distances_within_a_subject_only():
    first, second = (day_number(KEY, "patient:1", date) for date in ("20200101", "20200111"))
    assert second - first == 10
    assert day_number(KEY, "patient:2", "20200101") != first
    assert day_number(b"x" * 32, "patient:1", "20200101") != first
    for wrong in (None, "", "2020", "20201399", "today"):
        assert day_number(KEY, "patient:1", wrong) is None
