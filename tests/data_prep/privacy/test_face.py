"""Heads with and without a face, drawn and real."""

from pathlib import Path

import numpy as np
import pytest
from privacy_head import SPACING, head

from data_prep.privacy.face import deface, find_face
from voxscale.io import load_file

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


def front(values, modality):
    """Depth in mm of the surface seen from in front, for each (z, x)."""
    solid = values > (-300 if modality == "CT" else 60)
    first = solid.shape[1] - 1 - np.argmax(solid[:, ::-1], axis=1)
    return np.where(solid.any(axis=1), first * SPACING[1], 0.0)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_face_is_found_and_blanked_and_the_brain_stays(modality):
    values, brain, _ = head(modality)
    found = find_face(values, SPACING, np.eye(4), modality)
    assert (found.head, found.face) == (True, True)
    assert found.mask is not None
    clear = deface(values, found.mask, values.min())
    assert (brain & found.mask).sum() <= 0.01 * brain.sum()
    before, after = front(values, modality), front(clear, modality)
    face = (slice(20, 58), slice(50, 92))  # eye sockets to chin, 60 mm wide
    assert (before[face] > 0).all()
    assert np.median(before[face] - after[face]) > 15
    # What is left is the cut itself: along x it no longer follows eyes, nose and lips.
    relief = np.median(np.abs(before[face] - np.median(before[face], axis=1, keepdims=True)))
    left = np.median(np.abs(after[face] - np.median(after[face], axis=1, keepdims=True)))
    assert left < 0.5 * relief
    again = find_face(clear, SPACING, np.eye(4), modality)
    assert (again.head, again.face) == (True, False)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_no_face_where_it_is_gone_or_outside_or_the_skin_is(modality):
    removed, _, _ = head(modality, face=False)
    assert not find_face(removed, SPACING, np.eye(4), modality).face
    top = head(modality)[0][75:]  # above the brow
    assert not find_face(top, SPACING, np.eye(4), modality).face
    assert not find_face(head(modality, skin=False)[0], SPACING, np.eye(4), modality).head


def test_other_modalities_and_slivers_have_no_face():
    values, _, _ = head("CT")
    assert not find_face(values, SPACING, np.eye(4), "OT").face
    assert not find_face(values[:3], SPACING, np.eye(4), "CT").face
    assert not find_face(np.zeros((20, 20, 20), np.float32), SPACING, np.eye(4), "MR").head


def test_blanking_stays_within_the_number_type():
    voxels = np.full((2, 2, 2), 7, np.uint8)
    out = deface(voxels, np.ones((2, 2, 2), bool), -1024.0)
    assert out.dtype == np.uint8
    assert (out == 0).all()
    assert (voxels == 7).all()


HEADS = {
    "mr_unlabelled/mr_brain_flair_msl01.nii.gz": (True, True),
    "mr_unlabelled/mr_brain_t1_msl03.nii.gz": (True, True),
    "mr_unlabelled/mr_brain_t1gd_pyrad_brain1.nii.gz": (True, True),
    "mr_unlabelled/mr_brain_t1_studyforrest.nii.gz": (True, False),  # its publisher removed the face
}
"""All real heads with skin; every other scan has none (skull-stripped brains, chests, limbs, crops)."""


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not here")
def test_verdict_on_every_real_scan():
    paths = sorted([*DATA.glob("*_unlabelled/*"), *DATA.glob("labelled/*/images/*")])
    wrong = {}
    for path in paths:
        volume = load_file(path).volume()
        found = find_face(volume.values(), volume.spacing, volume.affine, volume.modality)
        expected = HEADS.get(path.relative_to(DATA).as_posix(), (False, False))
        if (found.head, found.face) != expected:
            wrong[path.name] = found.reason
    assert wrong == {}
