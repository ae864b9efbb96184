"""CT comes as int16 HU from every reader, with the values that independent libraries read."""

import dataclasses
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import zarr
from hypothesis import given
from hypothesis import strategies as st
from ingested import SMALL
from io_series import MR, make_series, set_tags
from pydicom.uid import generate_uid

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # readers get this list too
from ingest_memory import cut_of, file_case, limit, watched

from data_prep.config import RulesConfig
from data_prep.ingest import ingest
from voxscale.io import load_file
from voxscale.io.dicom import load_series
from voxscale.io.hounsfield import as_hounsfield
from voxscale.io.isolate import run_isolated
from voxscale.kernel.filters import load
from voxscale.store import open_store
from voxscale.volume import Volume


def volume(voxels, slope=1.0, intercept=0.0, modality="CT"):
    return Volume(np.asarray(voxels), np.eye(4), modality, slope, intercept)


def is_hounsfield(found):
    return (found.voxels.dtype, found.slope, found.intercept) == (np.int16, 1.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "slope", "intercept"),
    [("uint16", 1.0, -1024.0), ("int16", 1.0, -1000.0), ("uint8", 1.0, 0.0), ("int8", 1.0, -900.0), ("int32", 1.0, 0.0),
     ("uint32", 1.0, -32768.0), ("uint8", 16.0, -1024.0), ("int16", -1.0, 0.0), ("int16", 1.0, 0.0)],
)  # fmt: skip
def test_whole_units_in_any_integers(kind, slope, intercept):
    low, high = (-60, 100) if kind.startswith("i") else (0, 255)
    voxels = np.random.default_rng(0).integers(low, high, (9, 70, 8)).astype(kind)
    before = volume(voxels, slope, intercept)
    kept = voxels.copy()
    found = as_hounsfield(before)
    assert is_hounsfield(found)
    assert np.array_equal(found.values(), before.values())
    assert found.values().dtype == before.values().dtype
    assert np.array_equal(before.voxels, kept)  # what was read is not changed: it may be asked again
    assert np.array_equal(as_hounsfield(before).voxels, found.voxels)


@pytest.mark.parametrize(
    "other",
    [
        volume(np.full((2, 3, 4), 40000, np.uint16)),
        volume(np.full((2, 3, 4), 1, np.uint16), 1.0, -32770.0),
        volume(np.array([[[0, 1]]], np.int16), 0.5, 0.0),
        volume(np.array([[[0, 1]]], np.int16), 1.0, 0.25),
        volume(np.array([[[0.5, 1]]], np.float32)),
        volume(np.array([[[np.nan, 1]]], np.float32)),
        volume(np.array([[[0, 65535]]], np.uint16), 1.0, -24.0),
        volume(np.array([[[0, 4000]]], np.uint16), 1.0, -1024.0, "MR"),
        volume(np.array([[[0, 200]]], np.uint8), 1.0, 0.0, "MR"),
        volume(np.array([[[0, 200]]], np.uint8), 1.0, 0.0, "OT"),
    ],
)
def test_what_int16_does_not_hold_and_what_is_no_ct_stays_as_it_is(other):
    assert as_hounsfield(other) is other


def test_a_fraction_in_the_last_voxel_alone_is_noticed():
    voxels = np.full((50, 100, 100), 2, np.int16)
    assert is_hounsfield(as_hounsfield(volume(voxels, 0.5)))
    voxels[-1, -1, -1] = 3
    assert not is_hounsfield(as_hounsfield(volume(voxels, 0.5)))


@given(
    st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32"]),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6),
    st.one_of(st.integers(-20, 20).filter(bool).map(float), st.floats(-4, 4).filter(lambda slope: abs(slope) > 1e-3)),
    st.one_of(st.integers(-40000, 40000).map(float), st.floats(-2000, 2000)),
)
def test_values_are_always_equal(kind, numbers, slope, intercept):
    before = volume(np.array(numbers, np.uint32).astype(kind).reshape(1, 1, -1), slope, intercept)
    found = as_hounsfield(before)
    assert np.array_equal(found.values(), before.values())
    whole = np.array_equal(before.values(), np.rint(before.values()))
    exact = before.voxels.astype(np.float64) * slope + intercept
    assert is_hounsfield(found) == (whole and exact.min() >= -32768 and exact.max() <= 32767)


def scan(kind, low, high):
    voxels = np.random.default_rng(1).integers(low, high, (12, 14, 16)).astype(kind)
    voxels[:, :3] = low  # air
    return voxels


@pytest.mark.parametrize(
    ("kind", "low", "high", "slope", "intercept"),
    [("uint16", 0, 4000, 1.0, -1024.0), ("uint8", 0, 250, 10.0, -1000.0), ("int32", -1000, 3000, 1.0, 0.0),
     ("float32", -1000, 3000, 1.0, 0.0), ("int16", -1000, 100, 1.0, 0.0), ("uint8", 0, 250, 1.0, -200.0)],
)  # fmt: skip
def test_nifti(tmp_path, kind, low, high, slope, intercept):
    image = nibabel.Nifti1Image(scan(kind, low, high), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(tmp_path / "scan.nii")
    found = load_file(tmp_path / "scan.nii").volume()
    assert found.modality == "CT"
    assert is_hounsfield(found)
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "scan.nii")))
    assert np.array_equal(np.sort(found.values(), axis=None), np.sort(theirs.astype(np.float32), axis=None))
    ours = nibabel.load(tmp_path / "scan.nii").get_fdata().transpose(2, 1, 0)
    assert np.array_equal(found.values(), ours.astype(np.float32))


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, 0), (2, -1024)])
def test_dicom(tmp_path, slope, intercept):
    change = set_tags(RescaleSlope=slope, RescaleIntercept=intercept)
    paths, pixels = make_series(tmp_path / "s", change, turn=(1, 0, 0, 0, 1, 0))
    found = load_series(paths).volume()
    assert is_hounsfield(found)
    assert np.array_equal(found.values()[:, ::-1, ::-1], pixels.astype(np.float32) * slope + intercept)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s"))
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names))
    assert np.array_equal(found.values()[:, ::-1, ::-1], theirs)


def test_dicom_whose_slices_are_scaled_differently(tmp_path):
    paths, pixels = make_series(tmp_path / "s", set_tags(2, RescaleIntercept=-1000), turn=(1, 0, 0, 0, 1, 0))
    found = load_series(paths).volume()
    assert is_hounsfield(found)
    expected = pixels.astype(np.float32) - 1024
    expected[2] += 24
    assert np.array_equal(found.values()[:, ::-1, ::-1], expected)


def test_dicom_mr_keeps_its_integers(tmp_path):
    paths, pixels = make_series(tmp_path / "s", kind=MR, turn=(1, 0, 0, 0, 1, 0))
    found = load_series(paths).volume()
    assert (found.modality, found.slope, found.intercept) == ("MR", 1.0, -1024.0)
    assert np.array_equal(found.voxels[:, ::-1, ::-1], pixels)


def test_ingest_stores_ct_as_int16_and_mr_in_its_own_integers(tmp_path):
    path = tmp_path / "in" / "scan.nii"
    path.parent.mkdir()
    image = nibabel.Nifti1Image(scan("uint16", 0, 4000), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(1.0, -1024.0)
    image.to_filename(path)

    def darker(_, item):
        item.PixelData = (np.frombuffer(item.PixelData, np.uint16) // 2).tobytes()

    make_series(tmp_path / "in" / "ct", darker, count=7)
    other = set_tags(SeriesInstanceUID=generate_uid(entropy_srcs=["other"]))
    make_series(tmp_path / "in" / "mr", other, count=7, kind=MR, seed=1)
    thin = dataclasses.replace(SMALL, rules=RulesConfig(min_slices=7, min_extent=5.0))
    counts = ingest([tmp_path / "in"], tmp_path / "store", thin)
    store = open_store(tmp_path / "store")
    assert counts.accepted == len(store.entries) == 3
    kinds = sorted((entry.modality, entry.dtype, entry.slope, entry.intercept) for entry in store.entries.values())
    assert kinds == [("CT", "int16", 1.0, 0.0)] * 2 + [("MR", "int16", 1.0, -1024.0)]
    for key, entry in store.entries.items():
        array = zarr.open_array(store.path / key / "0", mode="r")
        assert array.dtype == entry.dtype
        assert np.array_equal(array[...].astype(np.float32) + entry.intercept, store.volume(key).values())
    (nifti,) = [key for key, entry in store.entries.items() if entry.modality_from == "values"]
    theirs = nibabel.load(path).get_fdata().transpose(2, 1, 0)
    assert np.array_equal(store.read(nifti), theirs)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.skipif(load() is None, reason="needs g++")
def test_what_was_read_is_not_kept_beside_it(tmp_path):
    shape, place = (100, 256, 256), np.linspace(-1, 1, 256) ** 2
    raw, peaks = 2 * int(np.prod(shape)), {}
    for kind, slope, body, noise in (("int16", 1.0, 1064, 40), ("uint16", 1.0, 1064, 40), ("uint8", 10.0, 106, 4)):
        voxels = np.random.default_rng(0).integers(0, noise, shape).astype(kind)
        voxels += np.where(place[:, None] + place < 0.6, body, 0).astype(kind)
        if kind == "int16":  # HU already
            voxels -= 1024
        image = nibabel.Nifti1Image(voxels.T, np.diag([0.8, 0.8, 1.0, 1.0]))
        image.header.set_slope_inter(slope, 0.0 if kind == "int16" else -1024.0)
        file = tmp_path / f"{kind}.nii"
        image.to_filename(file)
        cases = file_case(file), file_case(cut_of(file, tmp_path / f"{kind}_small.nii"))
        told = run_isolated(watched, (*cases, str(tmp_path / kind)), 120.0, 4.0)
        peaks[kind] = told["peak"] - told["idle"]
    assert raw < min(peaks.values()), (raw, peaks)
    assert max(peaks.values()) < limit(raw, False), (raw, peaks)
    assert max(peaks.values()) < peaks["int16"] + raw * 2 / 3, (raw, peaks)
