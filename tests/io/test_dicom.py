from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from voxscale.errors import DataError
from voxscale.io.dicom import read_headers, read_series

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "dicom"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
TURN = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0)


def make_series(folder, change=lambda index, item: None, count=6, turn=TURN, kind=CT, step=2.5):
    """Write an oblique series in shuffled order; returns its paths and its pixels, (slices, rows, columns)."""
    pixels = np.random.default_rng(0).integers(0, 4000, (count, 10, 12)).astype(np.uint16)
    series, study = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["study"])
    normal = np.cross(turn[:3], turn[3:])
    folder.mkdir(exist_ok=True)
    for index in range(count):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = kind
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = generate_uid()
        item.SeriesInstanceUID, item.StudyInstanceUID = series, study
        item.PatientName, item.PatientID, item.Modality = "DOE^CANARY", "CANARY-7", "CT" if kind == CT else "MR"
        item.ImagePositionPatient = [float(f"{v:.6f}") for v in np.array([-30, -40, 50]) + index * step * normal]
        item.ImageOrientationPatient = list(turn)
        item.PixelSpacing = [0.5, 0.75]  # rows are 0.5 mm apart, columns 0.75 mm
        item.SliceThickness = 9.0  # differs from the true spacing on purpose
        item.Rows, item.Columns, item.SamplesPerPixel = 10, 12, 1
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 12, 11, 0
        item.PhotometricInterpretation = "MONOCHROME2"
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = pixels[index].tobytes()
        change(index, item)
        item.save_as(folder / f"{(index * 5) % 7:02d}.dcm", enforce_file_format=True)
    return sorted(folder.glob("*.dcm")), pixels


def reason(paths):
    with pytest.raises(DataError) as error:
        read_series(paths)
    assert "CANARY" not in str(error.value)
    assert "dcm" not in str(error.value)
    return error.value.reason


def check_against_itk(paths):
    """Compare places and values of some voxels with SimpleITK's series reader."""
    volume = read_series(paths)
    reader = SimpleITK.ImageSeriesReader()
    folder = str(paths[0].parent)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    image = reader.Execute()
    values, to_index = volume.values(), np.linalg.inv(volume.affine)
    for spot in np.random.default_rng(0).integers(0, image.GetSize(), (200, 3)).tolist():
        left, back, up = image.TransformIndexToPhysicalPoint(spot)
        index = to_index @ [up, -back, -left, 1.0]
        z, y, x = np.rint(index[:3]).astype(int)
        assert np.abs(index[:3] - (z, y, x)).max() < 0.01
        assert values[z, y, x] == image.GetPixel(spot)
    return volume


@pytest.mark.parametrize("turn", [TURN, (1.0, 0, 0, 0, 1, 0), (0, 1.0, 0, 0, 0, -1), (0, 0, 1.0, 1, 0, 0)])
@pytest.mark.parametrize("kind", [CT, MR])
def test_series_lies_and_reads_as_in_simpleitk(tmp_path, turn, kind):
    paths, pixels = make_series(tmp_path / "s", turn=turn, kind=kind)
    volume = check_against_itk(paths)
    assert sorted(volume.spacing) == pytest.approx([0.5, 0.75, 2.5])
    assert volume.voxels.dtype == np.int16
    assert (volume.slope, volume.intercept) == (1, -1024)
    assert volume.modality == ("CT" if kind == CT else "MR")
    assert np.array_equal(np.sort(volume.voxels, axis=None), np.sort(pixels, axis=None))


@pytest.mark.parametrize("name", ["ct_rtstruct_sts002/image", "mr_rtstruct_sts002/image", "derived_gap"])
def test_real_series(name):
    paths = sorted((DATA / name).glob("*.dcm"))
    if name.startswith("derived"):
        assert not paths or reason(paths) == "uneven_slices"
    elif paths:
        check_against_itk(paths)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("ct_headtilt_varspacing_ge", "uneven_slices"),
        ("mr_dce_multiphase_ucsfbr06", "duplicate_slices"),
        ("mr_multiecho_siemens_phantom", "duplicate_slices"),
        ("mr_enhanced_multiframe/emri", "multiframe"),
        ("mr_mosaic_siemens", "multiframe"),
        ("derived_missing_position", "missing_geometry"),
        ("derived_missing_spacing", "missing_geometry"),
        ("ct_mixed_series_folder", "mixed_series"),
        ("ct_j2k_undecodable_phantom", "undecodable"),
    ],
)
def test_real_series_that_must_be_refused(folder, expected):
    paths = sorted((DATA / folder).glob("*.dcm"))
    assert not paths or reason(paths) == expected


def test_slopes_that_differ_between_slices(tmp_path):
    def change(index, item):
        item.RescaleSlope, item.RescaleIntercept = [1.0, 0.5, 2.0][index % 3], 0

    paths, pixels = make_series(tmp_path / "s", change, turn=(1.0, 0, 0, 0, 1, 0), kind=MR)
    expected = pixels * np.array([1.0, 0.5, 2.0] * 2)[:, None, None]
    volume = read_series(paths)
    assert volume.voxels.dtype == np.int16  # a lattice of halves
    assert np.array_equal(volume.values(), expected[:, ::-1, ::-1].astype(np.float32))


def test_overlay_bits_are_dropped(tmp_path):
    def change(index, item):
        item.PixelData = (np.frombuffer(item.PixelData, np.uint16) | 0x8000).tobytes()

    clean, _ = make_series(tmp_path / "a")
    marked, _ = make_series(tmp_path / "b", change)
    assert np.array_equal(read_series(clean).voxels, read_series(marked).voxels)


def test_signed_pixels(tmp_path):
    values = np.random.default_rng(1).integers(-2000, 2000, (10, 12)).astype(np.int16)

    def change(index, item):
        item.PixelRepresentation = 1
        item.PixelData = (values & 0x0FFF).astype(np.uint16).tobytes()
        item.RescaleIntercept = 0

    paths, _ = make_series(tmp_path / "s", change, turn=(1.0, 0, 0, 0, 1, 0))
    assert np.array_equal(read_series(paths).voxels[0], values[::-1, ::-1])


def set_tags(only=None, **tags):
    """A change that sets tags, or deletes those given as None, in one slice or in all."""

    def change(index, item):
        if only is None or index == only:
            for tag, value in tags.items():
                if value is None:
                    delattr(item, tag)
                else:
                    setattr(item, tag, value)

    return change


TILTED = lambda index, item: setattr(item, "ImagePositionPatient", [0, 0.9 * index, 2.5 * index])  # noqa: E731


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_tags(2, ImagePositionPatient=None), "missing_geometry"),
        (set_tags(2, ImageOrientationPatient=None), "missing_geometry"),
        (set_tags(2, PixelSpacing=None), "missing_geometry"),
        (set_tags(2, ImagePositionPatient=[0, 0]), "missing_geometry"),
        (set_tags(PixelSpacing=[0, 1]), "bad_affine"),
        (set_tags(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "bad_affine"),
        (set_tags(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "bad_affine"),
        (set_tags(3, PixelSpacing=[0.5, 0.8]), "mixed_series"),
        (set_tags(3, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "mixed_series"),
        (set_tags(3, SeriesInstanceUID="1.2.3"), "mixed_series"),
        (set_tags(3, Columns=10), "mixed_series"),
        (set_tags(3, SOPClassUID=MR), "mixed_series"),
        (set_tags(NumberOfFrames=2), "multiframe"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "multiframe"),
        (set_tags(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "multiframe"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "not_an_image"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3"), "not_an_image"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"), "not_an_image"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"), "not_an_image"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.128"), "bad_modality"),
        (set_tags(BurnedInAnnotation="YES"), "burned_in"),
        (set_tags(SamplesPerPixel=3), "bad_dtype"),
        (set_tags(2, PixelData=b"\0\0"), "truncated"),
        (set_tags(2, PixelData=None), "truncated"),
        (set_tags(2, BitsStored=None), "undecodable"),
        (TILTED, "sheared"),
    ],
)
def test_what_is_refused(tmp_path, change, expected):
    turn = (1.0, 0, 0, 0, 1, 0) if change is TILTED else TURN
    paths, _ = make_series(tmp_path / "s", change, turn=turn)
    assert reason(paths) == expected


def test_positions(tmp_path):
    paths, _ = make_series(tmp_path / "s")
    assert reason(paths[:1]) == "single_slice"
    assert reason([*paths, paths[2]]) == "duplicate_slices"
    by_place = sorted(paths, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    assert reason(by_place[:3] + by_place[4:]) == "uneven_slices"
    assert read_series(by_place[1:]).voxels.size == 5 * 120


@pytest.mark.parametrize(("jitter", "even"), [(0.009, True), (0.05, False)])
def test_tolerance_of_positions(tmp_path, jitter, even):
    def change(index, item):
        item.ImagePositionPatient = [0, 0, 0.8 * index + (jitter if index == 3 else 0)]

    paths, _ = make_series(tmp_path / "s", change, turn=(1.0, 0, 0, 0, 1, 0))
    if even:
        assert read_series(paths).spacing[0] == pytest.approx(0.8)
    else:
        assert reason(paths) == "uneven_slices"


def test_files_that_are_not_dicom(tmp_path):
    (tmp_path / "a.dcm").write_text("no DICOM at all " * 30)
    (tmp_path / "b.dcm").write_bytes(b"")
    for name in ("a.dcm", "b.dcm", "missing.dcm"):
        assert reason([tmp_path / name]) == "unreadable"
    assert read_headers([str(tmp_path / "b.dcm"), str(tmp_path / "missing.dcm")]) == [None, None]


def test_headers(tmp_path):
    paths, _ = make_series(tmp_path / "s")
    seg, _ = make_series(tmp_path / "t", set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), count=1)
    first, other = read_headers([str(paths[0]), str(seg[0])])
    assert first["kind"] == "image"
    assert first["PatientID"] == "CANARY-7"
    assert other["kind"] == "other"
