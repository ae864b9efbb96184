import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from io_series import CT, MR, TURN, make_series, set_tags

from voxscale.errors import DataError
from voxscale.io.dicom import load_series, read_headers, read_series
from voxscale.io.nifti import load_nifti

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "dicom"


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
    assert (volume.slope, volume.intercept) == ((1, 0) if kind == CT else (1, -1024))
    assert volume.modality == ("CT" if kind == CT else "MR")
    stored = volume.voxels.astype(int) + (1024 if kind == CT else 0)
    assert np.array_equal(np.sort(stored, axis=None), np.sort(pixels, axis=None))


@pytest.mark.parametrize("name", ["ct_rtstruct_sts002/image", "mr_rtstruct_sts002/image", "ct_jpeg2000_totalseg"])
def test_real_series(name):
    paths = sorted((DATA / name).glob("*"))
    if paths:
        check_against_itk(paths)


VERDICTS = {
    "broken_single/MR_truncated.dcm": "single_slice",
    "broken_single/badVR.dcm": "not_an_image",
    "broken_single/meta_missing_tsyntax.dcm": "unreadable",
    "broken_single/no_meta.dcm": "unreadable",
    "broken_single/rtdose.dcm": "not_an_image",
    "broken_single/test-SR.dcm": "not_an_image",
    "ct_headtilt_varspacing_ge": "sheared",
    "ct_j2k_undecodable_phantom": "undecodable",
    "ct_jpeg2000_totalseg": (1, (20, 512, 512)),
    "ct_mixed_series_folder": "mixed_series",
    "ct_rtstruct_sts002/image": (1, (48, 143, 161)),
    "ct_with_dicomseg_dcmqi": (1, (3, 512, 512)),
    "derived_gap": "missing_slices",
    "derived_missing_position": "missing_geometry",
    "derived_missing_spacing": "missing_geometry",
    "mr_dce_multiphase_ucsfbr06": (3, (256, 256, 6)),
    "mr_enhanced_multiframe/emri": "missing_geometry",
    "mr_enhanced_multiframe/siemens_xa10": (3, (6, 64, 64)),
    "mr_mosaic_siemens": (2, (36, 64, 64)),
    "mr_multiecho_siemens_phantom": (2, (8, 64, 64)),
    "mr_rtstruct_sts002/image": (1, (35, 90, 115)),
    "single_transfer_syntaxes/CT_small.dcm": "single_slice",
    "single_transfer_syntaxes/JPEG2000.dcm": "secondary_capture",
    "single_transfer_syntaxes/JPGExtended.dcm": "secondary_capture",
    "single_transfer_syntaxes/MR_small.dcm": "single_slice",
    "single_transfer_syntaxes/MR_small_RLE.dcm": "single_slice",
    "single_transfer_syntaxes/MR_small_implicit.dcm": "single_slice",
    "single_transfer_syntaxes/MR_small_jp2klossless.dcm": "single_slice",
    "single_transfer_syntaxes/MR_small_jpeg_ls_lossless.dcm": "single_slice",
    "single_transfer_syntaxes/image_dfl.dcm": "secondary_capture",
}
"""What happens to every series of the real files: number of volumes and shape of the first, or the reason."""


def images_of(place):
    """Files of one entry of `VERDICTS`; segmentations beside images left out."""
    path = DATA / place
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    return [p for p in paths if p.name not in ("liver.dcm", "partial_overlaps.dcm")]


@pytest.mark.skipif(not DATA.is_dir(), reason="real series are not here")
@pytest.mark.parametrize("place", VERDICTS)
def test_verdict_on_every_real_series(place):
    expected = VERDICTS[place]
    if isinstance(expected, str):
        assert reason(images_of(place)) == expected
        return
    parts, shape = expected
    paths = images_of(place)
    volumes = [load_series(paths, part) for part in range(parts)]
    assert {found.parts for found in volumes} == {parts}
    assert volumes[0].raw.voxels.shape == shape
    assert len({found.raw.voxels.tobytes() for found in volumes}) == parts
    with pytest.raises(DataError, match=r"dicom\.part must be 0 to"):
        load_series(paths, parts)


def test_verdicts_name_every_real_file():
    known = {path for place in VERDICTS for path in images_of(place)} if DATA.is_dir() else set()
    files = {p for p in DATA.rglob("*") if p.is_file() and not p.name.endswith(".nii.gz")}
    assert {p.name for p in files - known} <= {"rtstruct.dcm", "liver.dcm", "partial_overlaps.dcm"}


@pytest.mark.skipif(not DATA.is_dir() or not shutil.which("dcm2niix"), reason="needs the real series and dcm2niix")
@pytest.mark.parametrize("place", [place for place, verdict in VERDICTS.items() if not isinstance(verdict, str)])
def test_volumes_are_those_of_dcm2niix(place, tmp_path):
    """Grid and values against a converter with its own DICOM parser."""
    given = tmp_path / "in"
    given.mkdir()
    for number, path in enumerate(images_of(place)):
        shutil.copy(path, given / f"{number:03d}.dcm")
    subprocess.run(["dcm2niix", "-o", tmp_path, "-f", "%s_%e_%r", "-b", "n", given], check=False, capture_output=True)
    converted = [load_nifti(p, t).raw for p in sorted(tmp_path.glob("*.nii")) for t in range(load_nifti(p).parts)]
    parts, _ = VERDICTS[place]
    for part in range(parts):
        found = load_series(images_of(place), part).raw
        fitting = [
            other
            for other in converted
            if other.voxels.shape == found.voxels.shape
            and np.abs(other.affine - found.affine).max() < 0.02
            and np.allclose(other.values(), found.values(), atol=1e-3)
        ]
        assert fitting, [
            (c.voxels.shape, c.affine.round(2).tolist(), found.affine.round(2).tolist()) for c in converted
        ]


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
        (set_tags(3, PixelSpacing=[0.5, 0.8]), "missing_slices"),  # the odd slice is a volume of its own
        (set_tags(3, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "missing_slices"),
        (set_tags(3, SeriesInstanceUID="1.2.3"), "mixed_series"),
        (set_tags(3, Columns=10), "missing_slices"),
        (set_tags(3, SOPClassUID=MR), "mixed_series"),
        (set_tags(NumberOfFrames=2), "truncated"),
        (set_tags(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "missing_geometry"),
        (set_tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (set_tags(ImageType=["DERIVED", "SECONDARY", "PROJECTION IMAGE"]), "projection"),
        (set_tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "secondary_capture"),
        (set_tags(RescaleSlope=0), "bad_scaling"),
        (set_tags(PhotometricInterpretation="PALETTE COLOR"), "bad_dtype"),
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
    by_place = sorted(paths, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    assert reason(by_place[:3] + by_place[4:]) == "missing_slices"
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
    assert other["kind"] == "seg"


@pytest.mark.timeout(60)
def test_a_file_of_zeros_is_told_at_once(tmp_path):
    """As failed disks leave them; pydicom takes each eight bytes for an element, 20 minutes for this one."""
    file = tmp_path / "zeros.dcm"
    with file.open("wb") as handle:
        handle.truncate(3 << 30)
    assert read_headers([str(file)]) == [None]
    with pytest.raises(DataError, match="must begin as such, not with zeros") as error:
        load_series([file])
    assert error.value.reason == "unreadable"
