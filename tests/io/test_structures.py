"""Labels as DICOM-SEG, RTSTRUCT and folders of masks, against analytic shapes and other rasterisers."""

from collections import Counter
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from io_series import TURN, make_series
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import voxscale.io.structures
from voxscale.errors import DataError
from voxscale.io.dicom import load_series
from voxscale.io.dicom_code import coded_name
from voxscale.io.dicom_seg import load_seg, read_seg_header
from voxscale.io.masks import load_masks
from voxscale.io.rtstruct import fill, load_rtstruct, read_rtstruct_header
from voxscale.io.structures import LoadedLabel, paint
from voxscale.seed import rng

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "dicom"
REAL = pytest.mark.skipif(not DATA.is_dir(), reason="real files are not here")


def series(folder, turn=TURN):
    """A series that highdicom accepts as a source, sorted along its normal."""

    def change(index, item):
        item.FrameOfReferenceUID = "1.2.3.4"
        item.StudyDate = item.StudyTime = item.AccessionNumber = item.StudyID = ""
        item.PatientBirthDate = item.PatientSex = ""
        item.InstanceNumber = index + 1
        item.SeriesNumber = 1

    paths, _ = make_series(folder, change, turn=turn)
    items = sorted((pydicom.dcmread(path) for path in paths), key=lambda item: item.InstanceNumber)
    return paths, items


def describe(number, label, code):
    return SegmentDescription(
        number, label, codes.SCT.AnatomicalStructure, code, SegmentAlgorithmTypeValues.MANUAL, None
    )


def write_seg(path, items, pixels, kind=SegmentationTypeValues.BINARY, **how):
    segments = [describe(1, "CANARY one", codes.SCT.Liver), describe(2, "CANARY two", codes.SCT.Spleen)]
    made = Segmentation(
        items, pixels, kind, segments[: pixels.shape[-1]] if pixels.ndim == 4 else segments, generate_uid(), 2,
        generate_uid(), 1, "maker", "model", "1", "serial", **how,
    )  # fmt: skip
    made.save_as(path)


@pytest.mark.parametrize("turn", [TURN, (1.0, 0, 0, 0, 1, 0), (0, 1.0, 0, 0, 0, -1)])
@pytest.mark.parametrize("kind", [SegmentationTypeValues.BINARY, SegmentationTypeValues.FRACTIONAL])
@pytest.mark.filterwarnings("ignore")
def test_segments_lie_on_their_voxels(tmp_path, turn, kind):
    paths, items = series(tmp_path / "s", turn)
    generator = rng(0, "segments")
    masks = generator.random((6, 10, 12, 2)) < 0.2
    masks[..., 1] &= ~masks[..., 0]
    masks[3] = False  # empty frames are left out of the file
    pixels = masks.astype(np.float32 if kind == SegmentationTypeValues.FRACTIONAL else np.uint8)
    write_seg(tmp_path / "seg.dcm", items, pixels, kind)
    image = load_series(paths).raw
    label = load_seg(tmp_path / "seg.dcm", image, {1: 5, 2: 9})
    # Mark the same voxels in the images themselves: what the reader makes of them is the truth.
    for item, frame in zip(items, masks, strict=True):
        item.PixelData = (1 + frame[..., 0] * 5 + frame[..., 1] * 9).astype(np.uint16).tobytes()
        item.save_as(tmp_path / "s" / f"{item.InstanceNumber:02d}.mark")
    marked = load_series(sorted((tmp_path / "s").glob("*.mark"))).raw
    assert np.array_equal(label.voxels, marked.voxels - 1)
    assert label.overlaps == {}
    header = read_seg_header(tmp_path / "seg.dcm")
    assert header.series == (str(items[0].SeriesInstanceUID),)
    assert [each.code for each in header.structures] == ["liver", "spleen"]


@pytest.mark.filterwarnings("ignore")
def test_overlapping_segments_are_counted_and_the_later_wins(tmp_path):
    paths, items = series(tmp_path / "s")
    masks = np.zeros((6, 10, 12, 2), np.uint8)
    masks[2, 2:6, 2:6, 0] = 1
    masks[2, 4:8, 4:8, 1] = 1
    write_seg(tmp_path / "seg.dcm", items, masks)
    label = load_seg(tmp_path / "seg.dcm", load_series(paths).raw, {1: 1, 2: 2})
    assert label.overlaps == {(1, 2): 4}
    assert [(label.voxels == value).sum() for value in (1, 2)] == [12, 16]
    only = load_seg(tmp_path / "seg.dcm", load_series(paths).raw, {2: 7})
    assert np.unique(only.voxels).tolist() == [0, 7]


@pytest.mark.filterwarnings("ignore")
def test_a_segmentation_of_another_grid_is_refused(tmp_path):
    _, items = series(tmp_path / "s")
    write_seg(tmp_path / "seg.dcm", items, np.ones((6, 10, 12, 1), np.uint8))
    other, _ = make_series(tmp_path / "t", turn=TURN, step=2.7)
    with pytest.raises(DataError) as error:
        load_seg(tmp_path / "seg.dcm", load_series(other).raw, {1: 1})
    assert error.value.reason == "label_grid"


def coded(meaning, value, scheme="SCT", side=None):
    item = Dataset()
    item.CodeMeaning, item.CodeValue, item.CodingSchemeDesignator = meaning, value, scheme
    if side:
        inner = Dataset()
        inner.CodeMeaning, inner.CodeValue, inner.CodingSchemeDesignator = "CANARY", side, "SCT"
        item.SegmentedPropertyTypeModifierCodeSequence = [inner]
    return item


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (coded("CANARY", "10200004"), "liver"),
        (coded("CANARY", "T-62000", "SRT"), "liver"),
        (coded("CANARY", "64033007", side="7771000"), "kidney left"),
        (coded("CANARY", "64033007", side="24028007"), "kidney right"),
        (coded("CANARY", "51114001"), "artery"),
        (coded("CANARY", "CANARY"), None),
        (coded("CANARY", "1", "99CANARY"), None),
    ],
)
def test_codes_become_their_public_meaning_with_their_side(item, expected):
    assert coded_name([item]) == expected


def test_left_and_right_stay_two_structures(tmp_path):
    both = [coded("k", "64033007", side=side) for side in ("7771000", "24028007")]
    assert len({coded_name([item]) for item in both}) == 2
    assert coded_name(None) is None


@pytest.mark.filterwarnings("ignore")
def test_label_maps(tmp_path):
    paths, items = series(tmp_path / "s")
    pixels = rng(0, "label map").integers(0, 3, (6, 10, 12)).astype(np.uint8)
    write_seg(tmp_path / "seg.dcm", items, pixels, SegmentationTypeValues.LABELMAP)
    assert [each.number for each in read_seg_header(tmp_path / "seg.dcm").structures] == [1, 2]
    label = load_seg(tmp_path / "seg.dcm", load_series(paths).raw, {1: 4, 2: 9, 3: 11})
    assert [int((label.voxels == value).sum()) for value in (4, 9)] == [int((pixels == n).sum()) for n in (1, 2)]
    assert label.notes == ("label: 1 of 3 structures are empty",)


@REAL
@pytest.mark.filterwarnings("ignore")
def test_the_real_segmentations_are_as_highdicom_reads_them():
    images = sorted((DATA / "ct_with_dicomseg_dcmqi").glob("0*.dcm"))
    image = load_series(images).raw
    for name, count in (("liver.dcm", 1), ("partial_overlaps.dcm", 5)):
        path = DATA / "ct_with_dicomseg_dcmqi" / name
        label = load_seg(path, image, {number: number for number in range(1, count + 1)})
        seg = highdicom.seg.segread(path)
        uids = [pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in images]
        stack = seg.get_pixels_by_source_instance(
            uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
        union = int((stack.max(axis=-1) > 0).sum())
        assert int((label.voxels > 0).sum()) == union
        assert label.voxels.shape == image.voxels.shape


def write_structures(path, contours, kind="CLOSED_PLANAR"):
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = generate_uid()
    roi, drawn = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName = 4, "CANARY"
    drawn.ReferencedROINumber, drawn.ContourSequence = 4, []
    for points in contours:
        one = Dataset()
        one.ContourGeometricType, one.NumberOfContourPoints = kind, len(points)
        one.ContourData = [float(f"{value:.5f}") for value in np.asarray(points).ravel()]
        drawn.ContourSequence.append(one)
    item.StructureSetROISequence, item.ROIContourSequence = [roi], [drawn]
    item.save_as(path, enforce_file_format=True)
    return path


def disc(image, z, radius, centre=(5.0, 4.5)):
    """A circle of pixels (in array y, x units) of slice z, as points in (L, P, S) mm."""
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    index = np.stack(
        [np.full(400, z), centre[0] + radius * np.sin(turn), centre[1] + radius * np.cos(turn), np.ones(400)]
    )
    s, a, r = (image.affine @ index)[:3]
    return np.stack([-r, -a, s], axis=1)


@pytest.mark.parametrize("turn", [TURN, (1.0, 0, 0, 0, 1, 0), (0, 0, 1.0, 1, 0, 0)])
def test_discs_and_holes(tmp_path, turn):
    paths, _ = make_series(tmp_path / "s", turn=turn)
    image = load_series(paths).raw
    axis = int(np.argmin(image.voxels.shape))
    other = [n for n in range(3) if n != axis]
    centre = (4.4, 5.3)
    grid = np.stack(np.meshgrid(*(np.arange(image.voxels.shape[n]) for n in other), indexing="ij"), -1)
    far = np.hypot(*(grid - centre).transpose(2, 0, 1))

    def circle(z, radius):
        turns = np.linspace(0, 2 * np.pi, 400, endpoint=False)
        index = np.ones((4, 400))
        index[axis] = z
        index[other[0]], index[other[1]] = centre[0] + radius * np.sin(turns), centre[1] + radius * np.cos(turns)
        s, a, r = (image.affine @ index)[:3]
        return np.stack([-r, -a, s], axis=1)

    path = write_structures(tmp_path / "rt.dcm", [circle(2, 4.0), circle(2, 2.0), circle(3, 3.0)])
    label = load_rtstruct(path, image, {4: 3})
    moved = np.moveaxis(label.voxels, axis, 0)
    assert np.array_equal(moved[2] == 3, (far < 4.0) & (far > 2.0))
    assert np.array_equal(moved[3] == 3, far < 3.0)
    assert not moved[[0, 1, 4, 5]].any()
    assert read_rtstruct_header(path).structures[0].name == "CANARY"


def square(*corners):
    return np.array(corners, dtype=float)


def test_borders_and_keyholes():
    box = square((1, 1), (1, 4), (4, 4), (4, 1))
    expected = np.zeros((6, 6), bool)
    expected[1:4, 1:4] = True  # the lower ends count, the upper ones do not
    assert np.array_equal(fill([box], (6, 6)), expected)
    beside = square((1, 4), (1, 6), (4, 6), (4, 4))
    assert not (fill([box], (6, 6)) & fill([beside], (6, 6))).any()
    # One contour around a ring: in along the first row, around the hole, and out again.
    ring = square((0, 0), (0, 9), (9, 9), (9, 0), (0, 0), (3, 3), (6, 3), (6, 6), (3, 6), (3, 3))
    expected = np.zeros((10, 10), bool)
    expected[:9, :9] = True
    expected[3:6, 3:6] = False
    assert np.array_equal(fill([ring], (10, 10)), expected)
    assert not fill([box, box], (6, 6)).any()


@pytest.mark.parametrize("seed", range(5))
def test_polygons_by_their_winding_angle(seed):
    corners = rng(seed, "polygon").uniform(0, 20, (9, 2))
    grid = np.stack(np.meshgrid(np.arange(21), np.arange(21), indexing="ij"), -1).reshape(-1, 2)
    turns = np.zeros(len(grid))  # even-odd by winding angle, for points off the edges
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        u, v = a - grid, b - grid
        cross = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
        turns += np.arctan2(cross, (u * v).sum(axis=1))
    inside = np.rint(turns / (2 * np.pi)).astype(int) % 2 == 1
    assert np.array_equal(fill([corners], (21, 21)).ravel(), inside)


def test_contours_off_the_image_are_refused_and_points_are_left_out(tmp_path):
    paths, _ = make_series(tmp_path / "s")
    image = load_series(paths).raw
    with pytest.raises(DataError, match="slices of their image"):
        load_rtstruct(write_structures(tmp_path / "a.dcm", [disc(image, 40, 3)]), image, {4: 1})
    points = write_structures(tmp_path / "b.dcm", [disc(image, 2, 3)], "POINT")
    label = load_rtstruct(points, image, {4: 1})
    assert not label.voxels.any()
    assert "left out" in label.notes[0]


@REAL
@pytest.mark.parametrize("place", ["ct_rtstruct_sts002", "mr_rtstruct_sts002"])
def test_real_contours_against_another_rasteriser(place):
    image = load_series(sorted((DATA / place / "image").glob("*.dcm"))).raw
    path = DATA / place / "rtstruct.dcm"
    number = read_rtstruct_header(path).structures[0].number
    label = load_rtstruct(path, image, {number: 1})
    item = pydicom.dcmread(path)
    to_index, fine = np.linalg.inv(image.affine), 8
    shape = image.voxels.shape
    drawn = np.zeros(shape)
    for contour in item.ROIContourSequence[0].ContourSequence:
        left, back, up = np.asarray(contour.ContourData, dtype=float).reshape(-1, 3).T
        z, y, x = (to_index @ np.stack([up, -back, -left, np.ones_like(up)]))[:3]
        picture = Image.new("1", (shape[2] * fine, shape[1] * fine))
        corners = [((a + 0.5) * fine, (b + 0.5) * fine) for a, b in zip(x, y, strict=True)]
        ImageDraw.Draw(picture).polygon(corners, fill=1)
        area = np.asarray(picture, dtype=float).reshape(shape[1], fine, shape[2], fine).mean(axis=(1, 3))
        drawn[round(z.mean())] = np.abs(drawn[round(z.mean())] - area)
    volume = float(drawn.sum())
    assert label.voxels.sum() == pytest.approx(volume, rel=0.02)
    both = 2 * np.minimum(label.voxels, drawn > 0.5).sum() / (label.voxels.sum() + (drawn > 0.5).sum())
    assert both > 0.98


def test_masks_are_merged(tmp_path):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    values = rng(0, "scan").integers(0, 100, (8, 9, 10)).astype(np.int16)
    first, second = np.zeros((2, 8, 9, 10), np.uint8)
    first[1:5, 1:5, 1:5], second[3:7, 3:7, 3:7] = 1, 255
    for name, data in (("image", values), ("a", first), ("b", second)):
        nibabel.Nifti1Image(data, affine).to_filename(tmp_path / f"{name}.nii.gz")
    from voxscale.io import load_file

    image = load_file(tmp_path / "image.nii.gz").raw
    label = load_masks([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"], image, {1: 3, 2: 4})
    assert label.overlaps == {(3, 4): 8}
    assert [(label.voxels == value).sum() for value in (3, 4)] == [56, 64]
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "b.nii.gz")
    with pytest.raises(DataError, match="0 and 1"):
        load_masks([tmp_path / "b.nii.gz"], image, {1: 1})
    nibabel.Nifti1Image(first, 2 * affine).to_filename(tmp_path / "b.nii.gz")
    with pytest.raises(DataError, match="grid"):
        load_masks([tmp_path / "b.nii.gz"], image, {1: 1})


@pytest.mark.parametrize("together", [1, 3, 50])
def test_structures_that_are_painted_in_parts_count_the_same_overlaps(together, monkeypatch):
    monkeypatch.setattr(voxscale.io.structures, "TOGETHER", together)
    noise = rng(0, "masks")
    label, want, overlaps = LoadedLabel(np.zeros((7, 8, 9), np.uint8)), np.zeros((7, 8, 9), np.uint8), Counter()
    for value, where in (
        (2, (slice(None),)),
        (1, (slice(2, 6),)),
        (3, (slice(None), 4)),
        (2, (slice(1, 7), slice(2, 5))),
    ):
        mask = noise.random(want[where].shape) < 0.5
        paint(label, mask, value, where)
        for place in np.argwhere(mask):
            earlier = int(want[where][tuple(place)])
            overlaps[earlier, value] += earlier not in (0, value)
            want[where][tuple(place)] = value
    assert np.array_equal(label.voxels, want)
    assert label.overlaps == {pair: count for pair, count in overlaps.items() if count}


@REAL
@pytest.mark.parametrize("place", ["ct_with_dicomseg_dcmqi/liver.dcm", "ct_rtstruct_sts002/rtstruct.dcm"])
def test_damaged_files_end_in_a_reason(place, tmp_path):
    folder = DATA / place.split("/")[0]
    images = sorted(folder.glob("0*.dcm")) or sorted((folder / "image").glob("*.dcm"))
    image = load_series(images).raw
    seg = "liver" in place
    whole = (DATA / place).read_bytes()
    for number in range(15):
        draw = rng(0, "damage", place, number)
        data = bytearray(whole)
        if number % 2:
            del data[int(draw.integers(1, len(data))) :]
        else:
            for at in draw.integers(0, len(data), 30):
                data[at] ^= 1 << int(draw.integers(8))
        path = tmp_path / "x.dcm"
        path.write_bytes(data)
        try:
            header = (read_seg_header if seg else read_rtstruct_header)(path)
            (load_seg if seg else load_rtstruct)(path, image, {each.number: 1 for each in header.structures})
        except (DataError, MemoryError):
            continue
