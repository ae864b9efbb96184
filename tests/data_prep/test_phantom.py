"""The cohort of phantoms: anatomy, intensities, geometry of every format, determinism, reruns."""

import dataclasses
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own documents use)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as components

from data_prep.phantom import CohortSummary, PhantomConfig, main, make_cohort, quirk_of, sample_grid
from data_prep.phantom_anatomy import sample_anatomy
from data_prep.phantom_parts import CLASSES, Anatomy, Blob, Tissue, Tube
from data_prep.phantom_render import (
    Grid,
    Space,
    draw_blob,
    draw_tube,
    intensities,
    labels,
    render,
    rotation,
    smooth_noise,
    tissue_map,
)
from voxscale.errors import ConfigError, DataError
from voxscale.files import sha256_file
from voxscale.volume import Volume, ras_to_sar, to_canonical

T = Tissue
SMALL = PhantomConfig(unlabelled=9, labelled=2, workers=2)
LIVER, KIDNEYS, SPINE, SPLEEN = 1, 2, 3, 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    assert make_cohort(folder, SMALL) == CohortSummary(9, 2, 1, size_of(folder), False)
    return folder


def scans(folder: Path) -> list[Path]:
    return sorted(path for part in ("unlabelled", "task") for path in (folder / part).rglob("*") if path.is_file())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in scans(folder))


def checksums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in scans(folder)}


def centred(shape: tuple[int, int, int], spacing: float, centre: tuple[float, float, float] = (0, 0, 0)) -> Grid:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array(centre) - spacing * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def straight(anatomy: Anatomy) -> Anatomy:
    return dataclasses.replace(anatomy, waves=(), turn=(0.0, 0.0, 0.0), scale=1.0)


# Shapes


@pytest.mark.parametrize("tilt", [(0.0, 0.0, 0.0), (30.0, -40.0, 20.0)])
def test_blob_has_the_volume_of_an_ellipsoid_at_its_place(tilt: tuple[float, float, float]) -> None:
    space = Space(straight(sample_anatomy(0, "a")), centred((60, 60, 60), 1.0))
    tissue = np.full((60, 60, 60), T.CAVITY, dtype=np.uint8)
    draw_blob(tissue, space, Blob(T.LIVER, (T.CAVITY,), (3.0, -2.0, 4.0), (20.0, 12.0, 8.0), tilt=tilt))
    assert np.isclose((tissue == T.LIVER).sum(), 4 / 3 * np.pi * 20 * 12 * 8, rtol=0.02)
    assert np.allclose(np.argwhere(tissue == T.LIVER).mean(0) - 29.5, (3, -2, 4), atol=0.1)


def test_tube_has_the_volume_of_a_capsule() -> None:
    space = Space(straight(sample_anatomy(0, "a")), centred((60, 40, 40), 1.0))
    tissue = np.full((60, 40, 40), T.CAVITY, dtype=np.uint8)
    draw_tube(tissue, space, Tube(T.VEIN, (T.CAVITY,), ((-15.0, 2.0, 0.0), (15.0, 2.0, 0.0)), (6.0, 6.0)))
    assert np.isclose((tissue == T.VEIN).sum(), np.pi * 36 * 30 + 4 / 3 * np.pi * 216, rtol=0.02)


def test_shapes_replace_only_what_they_may() -> None:
    space = Space(straight(sample_anatomy(0, "a")), centred((20, 20, 20), 1.0))
    tissue = np.full((20, 20, 20), T.CAVITY, dtype=np.uint8)
    tissue[:10] = T.LUNG
    draw_blob(tissue, space, Blob(T.LIVER, (T.CAVITY,), (0.0, 0.0, 0.0), (6.0, 6.0, 6.0)))
    assert (tissue[:10] == T.LUNG).all()
    assert (tissue[10:] == T.LIVER).any()


def test_ripples_stay_within_their_depth_and_are_there() -> None:
    space = Space(straight(sample_anatomy(0, "a")), centred((50, 50, 50), 1.0))
    tissue = np.full((50, 50, 50), T.CAVITY, dtype=np.uint8)
    draw_blob(tissue, space, Blob(T.LIVER, (T.CAVITY,), (0.0, 0.0, 0.0), (15.0, 15.0, 15.0), ripple=0.3, phase=1.0))
    radius = np.linalg.norm(np.indices(tissue.shape) - 24.5, axis=0)
    assert (tissue[radius < 0.7 * 15] == T.LIVER).all()
    assert (tissue[radius > 1.3 * 15] == T.CAVITY).all()
    assert (tissue[radius < 15] == T.CAVITY).sum() > 100
    assert (tissue[radius > 15] == T.LIVER).sum() > 100


def test_windows_cut_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy, grid = sample_anatomy(3, "b"), sample_grid(3, "b", "oblique")
    stronger = [dataclasses.replace(w, push=(4 * w.push[0], 4 * w.push[1], 4 * w.push[2])) for w in anatomy.waves]
    anatomy = dataclasses.replace(anatomy, waves=tuple(stronger))
    grid = Grid((32, 40, 48), grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    windowed = tissue_map(anatomy, grid)
    monkeypatch.setattr(Space, "window", lambda *_: (slice(None),) * 3)
    assert np.array_equal(windowed, tissue_map(anatomy, grid))


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_rotation_turns_and_never_mirrors(degrees: tuple[float, float, float]) -> None:
    turn = rotation(degrees)
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(turn), 1)


def test_rotation_about_one_axis_keeps_it() -> None:
    assert np.allclose(rotation((90.0, 0.0, 0.0)) @ (1, 0, 0), (1, 0, 0))
    assert np.allclose(np.abs(rotation((90.0, 0.0, 0.0)) @ (0, 1, 0)), (0, 0, 1))


# One subject


@pytest.mark.parametrize("case", ["case_000", "case_001", "scan_004"])
def test_hu_of_tissues_are_those_of_the_human_body(case: str) -> None:
    anatomy, grid = sample_anatomy(0, case), centred((90, 80, 100), 3.0, (20, 0, 0))
    tissue = tissue_map(anatomy, grid)
    hu = intensities(anatomy, grid, tissue)
    expected = {
        (T.AIR,): (-1010, -970),
        (T.LUNG,): (-870, -700),
        (T.FAT,): (-125, -80),
        (T.CAVITY,): (-120, -75),
        (T.MUSCLE,): (35, 75),
        (T.LIVER,): (20, 125),
        (T.SPLEEN,): (35, 140),
        (T.CORTEX, T.MEDULLA): (20, 190),
        (T.ARTERY,): (20, 260),
        (T.BONE, T.MARROW): (130, 700),
    }
    for kinds, (low, high) in expected.items():
        core = binary_erosion(np.isin(tissue, kinds))  # away from partial volume
        assert low < hu[core].mean() < high, kinds
    assert hu[tissue == T.BONE].mean() > hu[tissue == T.MARROW].mean() > hu[tissue == T.MUSCLE].mean()
    assert -1024 <= hu.min() < -1000 < 700 < hu.max() <= 3071


@pytest.mark.parametrize("index", range(12))
def test_labelled_cases_show_every_organ_where_it_belongs(index: int) -> None:
    case = f"case_{index:03d}"
    anatomy, grid = sample_anatomy(0, case), sample_grid(0, case, whole=True)
    assert all(2 <= s <= 3 for s in np.diag(grid.affine)[:3])
    hu, label = render(anatomy, grid)
    counts = np.bincount(label.ravel(), minlength=5) * np.prod(np.diag(grid.affine)[:3]) / 1000  # ml
    for value, (low, high) in {LIVER: (300, 2200), KIDNEYS: (80, 450), SPINE: (100, 700), SPLEEN: (25, 450)}.items():
        assert low < counts[value] < high, (value, counts)
    where = {value: np.argwhere(label == value) @ grid.affine[:3, :3].T + grid.affine[:3, 3] for value in range(1, 5)}
    right_left = {value: points[:, 2].mean() for value, points in where.items()}
    assert right_left[LIVER] > 20 > right_left[SPINE] > -20 > right_left[SPLEEN]
    assert where[SPINE][:, 1].mean() < where[LIVER][:, 1].mean() - 15
    parts, n = components(label == KIDNEYS)
    sizes = np.sort(np.bincount(parts.ravel(), minlength=n + 1)[1:])[::-1]
    assert n >= 2
    assert sizes[1] > 0.35 * sizes[0]
    assert 20 < hu[label == LIVER].mean() < 125
    assert 20 < hu[label == SPLEEN].mean() < 140
    assert 20 < hu[label == KIDNEYS].mean() < 190
    assert 150 < hu[label == SPINE].mean() < 600


def test_no_threshold_tells_liver_spleen_kidneys_and_blood_apart() -> None:
    hu = np.array([sample_anatomy(0, f"case_{i:03d}").hu for i in range(12)])
    kinds = [T.LIVER, T.SPLEEN, T.CORTEX, T.ARTERY]
    low, high = hu[:, kinds].min(0), hu[:, kinds].max(0)
    assert low.max() < high.min()
    assert len({sample_anatomy(0, f"case_{i:03d}").phase for i in range(12)}) >= 3


def test_labels_are_the_tissues_of_each_class_and_nothing_else() -> None:
    label = labels(np.arange(len(Tissue), dtype=np.uint8))
    assert list(CLASSES) == ["liver", "kidneys", "spine", "spleen"]
    assert {t.name for t in Tissue if label[t] == KIDNEYS} == {"CORTEX", "MEDULLA"}
    assert {t.name for t in Tissue if label[t] == 0} >= {
        "AIR",
        "FAT",
        "MUSCLE",
        "RIB",
        "CANAL",
        "SINUS",
        "ARTERY",
        "VEIN",
    }


def test_rendering_is_a_function_of_seed_and_case() -> None:
    grid = centred((12, 40, 40), 6.0)
    first, again = (render(sample_anatomy(5, "x"), grid) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    for other in (sample_anatomy(6, "x"), sample_anatomy(5, "y")):
        assert (render(other, grid)[1] != first[1]).mean() > 0.01


def test_noise_has_the_dose_and_grain_asked_for() -> None:
    noise = smooth_noise(np.random.default_rng(0), (30, 64, 64), (0.4, 1.0, 1.0))
    assert abs(noise.mean()) < 0.05
    assert np.isclose(noise.std(), 1, atol=1e-3)
    # Convolving white noise with a Gaussian of width s gives a correlation of exp(-d^2 / (4 s^2)).
    assert np.isclose((noise[:, :, 1:] * noise[:, :, :-1]).mean(), np.exp(-1 / 4), atol=0.03)


# The cohort


def test_the_same_config_gives_the_same_bytes_whatever_the_workers(cohort: Path, tmp_path: Path) -> None:
    make_cohort(tmp_path / "again", PhantomConfig(unlabelled=9, labelled=2, workers=1))
    assert checksums(tmp_path / "again") == checksums(cohort)
    assert (tmp_path / "again/phantom.json").read_bytes() == (cohort / "phantom.json").read_bytes()


def test_a_subject_does_not_depend_on_the_size_of_the_cohort(cohort: Path, tmp_path: Path) -> None:
    make_cohort(tmp_path / "one", PhantomConfig(unlabelled=1, labelled=1))
    assert checksums(tmp_path / "one").items() <= checksums(cohort).items() | {
        ("task/dataset.json", sha256_file(cohort / "task/dataset.json"))
    }


def test_no_two_scans_are_alike(cohort: Path) -> None:
    sums = checksums(cohort)
    assert len(set(sums.values())) == len(sums)


def test_cohort_has_formats_spacings_and_orientations_of_all_kinds(cohort: Path) -> None:
    assert [quirk_of(i) for i in range(14)].count("corrupt") == 1
    files = {p.name: nib.load(p) for p in scans(cohort) if p.parent.name == "unlabelled"}
    assert {p.suffix for p in (cohort / "unlabelled").iterdir()} == {".gz", ".nii", ""}
    assert {str(f.get_data_dtype()) for f in files.values()} == {"int16", "float32"}
    axes = {"".join(nib.aff2axcodes(f.affine)) for f in files.values()}
    assert axes == {"RAS", "PSL"}
    oblique = [name for name, f in files.items() if np.degrees(nib.affines.obliquity(f.affine)).max() > 5]
    assert oblique == ["scan_004.nii.gz"]
    spacings = sorted(tuple(np.round(f.header.get_zooms(), 3)) for f in files.values())
    assert (0.8, 0.8, 5.0) in spacings
    assert sum(max(s) <= 1 for s in spacings) == 1
    assert len(set(spacings)) == len(spacings)
    values = np.asarray(files["scan_005.nii.gz"].dataobj)
    assert (values != np.round(values)).mean() > 0.9  # floats that no integer type can hold


def test_nifti_files_put_each_voxel_where_the_grid_has_it(cohort: Path) -> None:
    for index in (0, 2, 3, 4, 6, 8):
        case, quirk = f"scan_{index:03d}", quirk_of(index)
        grid = sample_grid(0, case, quirk)
        path = next((cohort / "unlabelled").glob(f"{case}.nii*"))
        stored = nib.load(path)
        hu, _ = render(sample_anatomy(0, case), grid)
        voxels, affine = to_canonical(np.asarray(stored.dataobj).transpose(2, 1, 0), ras_to_sar(stored.affine))
        assert np.array_equal(voxels, hu)
        assert np.allclose(affine, grid.affine, atol=1e-3)
        Volume(voxels, affine, "CT")
        image = sitk.ReadImage(str(path))
        check_points(image, hu, grid)


def check_points(image: sitk.Image, hu: np.ndarray, grid: Grid) -> None:
    """SimpleITK, asked by world coordinates (L, P, S), must find our voxels."""
    for index in np.random.default_rng(0).integers(0, hu.shape, (50, 3)):
        s, a, r = grid.affine[:3, :3] @ index + grid.affine[:3, 3]
        there = image.TransformPhysicalPointToContinuousIndex((float(-r), float(-a), float(s)))
        assert np.allclose(there, np.round(there), atol=0.02)
        assert image.GetPixel(*(round(i) for i in there)) == hu[tuple(index)]


def test_dicom_series_puts_each_voxel_where_the_grid_has_it(cohort: Path) -> None:
    reader = sitk.ImageSeriesReader()
    folder = str(cohort / "unlabelled/scan_001")
    (series,) = reader.GetGDCMSeriesIDs(folder)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, series))
    image = reader.Execute()
    grid = sample_grid(0, "scan_001", "dicom")
    assert image.GetSize() == grid.shape[::-1]
    check_points(image, render(sample_anatomy(0, "scan_001"), grid)[0], grid)


def test_dicom_slices_are_valid_and_name_nobody(cohort: Path) -> None:
    slices = [pydicom.dcmread(p) for p in sorted((cohort / "unlabelled/scan_001").iterdir())]
    uids = [s.SOPInstanceUID for s in slices]
    assert len(set(uids)) == len(slices) >= 40
    assert all(u.is_valid and u.startswith("2.25.") for u in uids)
    assert len({s.SeriesInstanceUID for s in slices}) == 1
    for s in slices:
        assert s.file_meta.MediaStorageSOPInstanceUID == s.SOPInstanceUID
        assert s.SOPClassUID == pydicom.uid.CTImageStorage
        assert (str(s.PatientName), s.PatientID, s.StudyDate) == ("", "PHANTOM-01", "")
        assert s.pixel_array.max() < 4096


def test_labels_lie_on_the_grid_of_their_scan(cohort: Path) -> None:
    names = sorted(p.name for p in (cohort / "task/images").iterdir())
    assert names == sorted(p.name for p in (cohort / "task/labels").iterdir()) == ["case_000.nii.gz", "case_001.nii.gz"]
    for name in names:
        image, label = (sitk.ReadImage(str(cohort / "task" / part / name)) for part in ("images", "labels"))
        for get in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(image, get)() == getattr(label, get)()
        assert label.GetPixelID() == sitk.sitkUInt8
        assert set(np.unique(sitk.GetArrayFromImage(label))) == {0, 1, 2, 3, 4}
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(label)
        assert shape.GetCentroid(LIVER)[0] < -20  # L is negative on the patient's right
        assert shape.GetCentroid(SPLEEN)[0] > 20
    about = json.loads((cohort / "task/dataset.json").read_text())
    assert about["labels"] == {"0": "background", "1": "liver", "2": "kidneys", "3": "spine", "4": "spleen"}


def test_the_corrupt_scan_cannot_be_unpacked(cohort: Path) -> None:
    with gzip.open(cohort / "unlabelled/scan_007.nii.gz") as file:
        assert len(file.read(352)) == 352
        with pytest.raises(EOFError):
            file.read()


def test_readme_says_that_the_scans_are_synthetic(cohort: Path) -> None:
    assert (cohort / "README.txt").read_text().startswith("These scans are synthetic.")


def test_a_finished_cohort_is_kept_and_a_damaged_or_other_one_made_anew(tmp_path: Path) -> None:
    folder, one = tmp_path / "cohort", PhantomConfig(unlabelled=2, labelled=1)
    assert not make_cohort(folder, one).reused
    first, times = checksums(folder), [p.stat().st_mtime_ns for p in scans(folder)]
    assert make_cohort(folder, PhantomConfig(unlabelled=2, labelled=1, workers=7)).reused
    assert [p.stat().st_mtime_ns for p in scans(folder)] == times

    (folder / "unlabelled/scan_000.nii.gz").write_bytes(b"changed")
    assert not make_cohort(folder, one).reused
    assert checksums(folder) == first

    (folder / "phantom.json").unlink()  # as after a crash: parts of a cohort, no list of files
    (folder / ".partial/unlabelled").mkdir(parents=True)
    (folder / ".partial/unlabelled/left.nii.gz").write_bytes(b"left over")
    assert not make_cohort(folder, one).reused
    assert checksums(folder) == first

    assert not make_cohort(folder, PhantomConfig(unlabelled=1, labelled=1, seed=1)).reused
    second = checksums(folder)
    assert set(second) < set(first)
    assert second["unlabelled/scan_000.nii.gz"] != first["unlabelled/scan_000.nii.gz"]


@pytest.mark.parametrize("name", ["unlabelled/mine.nii.gz", "task/mine.nii.gz", "README.txt"])
def test_files_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(DataError, match=r"phantom.folder must be new or hold a phantom cohort"):
        make_cohort(tmp_path, SMALL)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(("key", "value"), [("unlabelled", 0), ("labelled", 0), ("labelled", 1000), ("workers", 0)])
def test_bad_configs_are_named(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"phantom\.{key} must be .*, not {value}"):
        PhantomConfig(**{key: value})


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "c"), "--unlabelled", "1", "--labelled", "1", "--seed", "4"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["unlabelled"], summary["labelled"], summary["reused"]) == (1, 1, False)
    with pytest.raises(ConfigError, match=r"phantom\.folder must be given first"):
        main(["--unlabelled", "1"])
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "c"), "--unlabeled", "1"])
    assert stop.value.code == 2
