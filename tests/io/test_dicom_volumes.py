"""Series of several volumes, irregular slices, 2D images, header whitelist, damaged files."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from io_series import MR, make_series, set_tags
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from voxscale.errors import DataError
from voxscale.io.dicom import load_series
from voxscale.io.loaded import ReadConfig
from voxscale.seed import rng

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "dicom"
FLAT = (1.0, 0, 0, 0, 1, 0)
MEND = ReadConfig(irregular="resample", single_slice="accept")


def reason(paths, part=0, settings=None):
    with pytest.raises(DataError) as error:
        load_series(paths, part, settings)
    return error.value.reason


def two(tmp_path, **tags):
    """Two volumes of one series at the same places; the second has other pixels and the given tags."""
    first, _ = make_series(tmp_path / "a", kind=MR, turn=FLAT)
    second, pixels = make_series(tmp_path / "b", kind=MR, turn=FLAT, seed=1)
    for path in second:
        item = pydicom.dcmread(path)
        for tag, value in tags.items():
            setattr(item, tag, value)
        item.save_as(path)
    return [*first, *second], pixels


@pytest.mark.parametrize(
    "tags",
    [
        {"EchoTime": 20.0},
        {"TemporalPositionIdentifier": 2},
        {"AcquisitionNumber": 7},
        {"TriggerTime": 300.0},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        {"DiffusionBValue": 800.0},
        {"InstanceNumber": 99},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_what_tells_volumes_of_a_series_apart(tmp_path, tags):
    paths, pixels = two(tmp_path, **tags)
    found = [load_series(paths, part) for part in range(2)]
    assert [each.parts for each in found] == [2, 2]
    assert np.array_equal(found[1].raw.voxels, pixels[:, ::-1, ::-1])
    assert not np.array_equal(found[0].raw.voxels, found[1].raw.voxels)
    assert bool(found[0].notes) == ("InstanceNumber" in tags)


def test_a_time_per_slice_does_not_tear_volumes_apart(tmp_path):
    paths, _ = two(tmp_path, EchoTime=20.0)
    for number, path in enumerate(paths):
        item = pydicom.dcmread(path)
        item.AcquisitionTime = f"1200{number:02d}"
        item.AcquisitionNumber = number
        item.save_as(path)
    assert load_series(paths).parts == 2


def test_slices_sent_twice_are_used_once(tmp_path):
    paths, _ = make_series(tmp_path / "a", turn=FLAT)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[2].read_bytes())
    found = load_series([*paths, copy])
    assert np.array_equal(found.raw.voxels, load_series(paths).raw.voxels)
    assert found.notes == ("1 slices were there twice; one of each is used",)


def test_slices_that_share_a_place_for_no_reason_are_refused(tmp_path):
    paths, _ = make_series(tmp_path / "a", turn=FLAT)
    item = pydicom.dcmread(paths[2])
    item.SOPInstanceUID = generate_uid()
    item.PixelData = item.PixelData[::-1]
    item.save_as(tmp_path / "other.dcm")
    assert reason([*paths, tmp_path / "other.dcm"]) == "duplicate_slices"


def test_a_scout_in_the_series_comes_last(tmp_path):
    paths, _ = make_series(tmp_path / "a", turn=FLAT)
    scout, _ = make_series(tmp_path / "b", set_tags(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), count=1)
    found = load_series([*scout, *paths])
    assert (found.parts, found.raw.voxels.shape) == (2, (6, 10, 12))
    assert reason([*scout, *paths], 1) == "single_slice"


def field(z, y, x):
    """A linear function of place (mm), which linear resampling gives back exactly; small enough for 12 bits."""
    return 40 * z + 10 * y + 8 * x + 300


def make_field(folder, corners):
    """A series that samples `field` at any slice corners (x, y, z)."""

    def change(index, item):
        x, y, z = corners[index]
        grid = field(z, y + 0.5 * np.arange(10)[:, None], x + 0.75 * np.arange(12)[None, :])
        item.ImagePositionPatient = [float(value) for value in corners[index]]
        item.PixelData = np.rint(grid).astype(np.uint16).tobytes()
        item.RescaleIntercept = 0

    return make_series(folder, change, count=len(corners), turn=FLAT)[0]


def test_uneven_slices_are_resampled_onto_an_even_grid(tmp_path):
    heights = [0, 2.0, 4.0, 5.0, 7.0, 9.0, 12.0]  # median gap 2 mm
    paths = make_field(tmp_path / "s", [(0, 0, z) for z in heights])
    assert reason(paths) == "uneven_slices"
    found = load_series(paths, settings=MEND)
    volume = found.volume()
    assert volume.spacing[0] == pytest.approx(2.0)
    assert volume.voxels.shape == (7, 10, 12)
    assert "7 were resampled to 7" in found.notes[0]
    expected = field(2.0 * np.arange(7), 0, 0)[:, None, None] + 5 * np.arange(10)[:, None] + 6 * np.arange(12)
    assert np.allclose(volume.values()[:, ::-1, ::-1], expected, atol=0.51)


def test_a_gap_where_slices_are_missing_is_never_bridged(tmp_path):
    paths = make_field(tmp_path / "s", [(0, 0, z) for z in (0, 2, 4, 8, 10, 12)])
    assert reason(paths) == "missing_slices"
    assert reason(paths, settings=MEND) == "missing_slices"


def test_a_tilted_gantry_is_straightened(tmp_path):
    paths = make_field(tmp_path / "s", [(0, 1.0 * k, 3.0 * k) for k in range(4)])
    assert reason(paths) == "sheared"
    found = load_series(paths, settings=MEND)
    values = found.volume().values()[:, ::-1, ::-1]
    y = 0.5 * np.arange(10)
    for k in range(4):
        inside = y >= k  # what slice k covers of the straight grid
        expected = field(3.0 * k, y[inside, None], 0.75 * np.arange(12)[None])
        assert np.allclose(values[k][inside], expected, atol=0.51)
        assert (values[k][y < k - 0.5] == -1024).all()
    assert "tilted" in found.notes[0]


def test_slices_of_several_number_types_and_scales(tmp_path):
    scales = [(1, -1024), (0.5, 3), (1, 0), (2, -7), (0.25, 0), (-1, 0)]

    def change(index, item):
        grid = item.PixelData
        item.BitsAllocated, item.BitsStored, item.HighBit = [(8, 8, 7), (16, 12, 11), (16, 16, 15)][index % 3]
        if index % 3 == 0:
            item.PixelData = (np.frombuffer(grid, np.uint16) // 16).astype(np.uint8).tobytes()
        item.PixelRepresentation = int(index % 3 == 2)
        item.RescaleSlope, item.RescaleIntercept = scales[index]

    paths, pixels = make_series(tmp_path / "s", change, turn=FLAT)
    pixels[::3] //= 16
    want = np.stack(
        [plane.astype(np.float64) * slope + start for plane, (slope, start) in zip(pixels, scales, strict=True)]
    )
    assert np.array_equal(load_series(paths).volume().values(), want.astype(np.float32)[:, ::-1, ::-1])


def planar(folder, kind, change=lambda index, item: None, **how):
    def both(index, item):
        for tag in ("ImagePositionPatient", "ImageOrientationPatient"):
            delattr(item, tag)
        change(index, item)

    return make_series(folder, both, kind=kind, **how)


def test_radiographs_are_images(tmp_path):
    def change(index, item):
        del item.PixelSpacing
        item.ImagerPixelSpacing = [0.2, 0.3]
        item.PhotometricInterpretation = "MONOCHROME1"
        item.InstanceNumber = index

    paths, pixels = planar(tmp_path / "s", "1.2.840.10008.5.1.4.1.1.1.1", change, count=2)
    found = load_series(paths, 1)
    assert (found.modality, found.parts, found.raw.voxels.shape) == ("XR", 2, (1, 10, 12))
    assert found.volume().spacing == pytest.approx((1.0, 0.2, 0.3))
    stored = pixels[1].astype(int)
    assert np.array_equal(found.volume().values()[0] + 1024, stored.max() + stored.min() - stored)
    assert len(found.notes) == 2


def test_ultrasound_in_colour(tmp_path):
    colours = np.random.default_rng(3).integers(0, 255, (10, 12, 3)).astype(np.uint8)

    def change(index, item):
        del item.PixelSpacing
        item.SamplesPerPixel, item.PlanarConfiguration, item.PhotometricInterpretation = 3, 0, "RGB"
        item.BitsAllocated, item.BitsStored, item.HighBit = 8, 8, 7
        item.PixelData = colours.tobytes()

    paths, _ = planar(tmp_path / "s", "1.2.840.10008.5.1.4.1.1.6.1", change, count=1)
    found = load_series(paths)
    assert (found.modality, found.spacing_known) == ("US", False)
    assert np.array_equal(found.raw.voxels[:, 0].transpose(1, 2, 0), colours)
    assert found.volume().channels == 3


def test_one_slice_is_an_image_where_that_is_wanted(tmp_path):
    paths, pixels = make_series(tmp_path / "s", count=1)
    assert reason(paths) == "single_slice"
    found = load_series(paths, settings=MEND)
    assert found.raw.voxels.shape == (1, 10, 12)
    assert np.array_equal(found.raw.voxels[0], pixels[0])


def enhanced(path, pixels, corners, times):
    """An enhanced MR file, by hand."""
    plain, _ = make_series(path.parent / "plain", kind=MR, count=1, turn=FLAT)
    item = pydicom.dcmread(plain[0])
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(item, tag)
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    item.NumberOfFrames = len(pixels)
    item.PixelData = pixels.astype(np.uint16).tobytes()
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(FLAT)
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.75]
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = 2
    shared.PixelValueTransformationSequence[0].RescaleIntercept = 5
    item.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for corner, time in zip(corners, times, strict=True):
        group = Dataset()
        group.PlanePositionSequence, group.FrameContentSequence = [Dataset()], [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = list(corner)
        group.FrameContentSequence[0].TemporalPositionIndex = time
        groups.append(group)
    item.PerFrameFunctionalGroupsSequence = groups
    item.save_as(path, enforce_file_format=True)
    return path


def test_enhanced_frames_go_to_their_places_and_times(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 4000, (8, 10, 12))
    order = [(t, k) for k in (2, 0, 3, 1) for t in (2, 1)]
    path = enhanced(tmp_path / "e.dcm", pixels, [(0, 0, 3.0 * k) for _, k in order], [t for t, _ in order])
    for part in range(2):
        found = load_series([path], part)
        assert (found.parts, found.modality) == (2, "MR")
        values = found.volume().values()[:, ::-1, ::-1]
        for k in range(4):
            assert np.array_equal(values[k], 2 * pixels[order.index((part + 1, k))] + 5)
    assert reason([enhanced(tmp_path / "f.dcm", pixels[:4], [(0, 0, k) for k in range(4)], [1] * 4)], 1) == (
        "no_such_volume"
    )


def test_no_text_of_the_header_comes_through(tmp_path):
    def change(index, item):
        for tag in ("BodyPartExamined", "Manufacturer", "ContrastBolusAgent", "SeriesDescription", "StationName"):
            setattr(item, tag, "CANARY")
        item.ImageType = ["ORIGINAL", "CANARY", "AXIAL"]
        item.KVP, item.SliceThickness, item.EchoTime = 120, 2.5, 19700102
        item.add_new(0x00091001, "LO", "CANARY")

    paths, _ = make_series(tmp_path / "s", change, turn=FLAT)
    found = load_series(paths)
    told = asdict(found.technique)
    assert "CANARY" not in str(told) + str(found.notes)
    assert (told["kvp"], told["slice_thickness"], told["echo_time"]) == (120.0, 2.5, None)
    assert told["image_type"] == ("ORIGINAL", "AXIAL")
    assert told["contrast"] is True
    assert told["body_part"] is None
    known, _ = make_series(tmp_path / "t", set_tags(BodyPartExamined="CHEST", Manufacturer="SIEMENS CANARY"), turn=FLAT)
    assert load_series(known).technique.body_part == "chest"
    assert load_series(known).technique.manufacturer == "siemens"


SMALL = ["single_transfer_syntaxes/CT_small.dcm", "single_transfer_syntaxes/MR_small_RLE.dcm"]
SMALL += ["single_transfer_syntaxes/MR_small_jpeg_ls_lossless.dcm", "mr_enhanced_multiframe/siemens_xa10/6_1.dcm"]


@pytest.mark.skipif(not DATA.is_dir(), reason="real files are not here")
@pytest.mark.parametrize("place", SMALL)
def test_damaged_files_end_in_a_reason(place, tmp_path):
    whole = (DATA / place).read_bytes()
    for number in range(20):
        draw = rng(0, "damage", place, number)
        data = bytearray(whole)
        if number % 2:
            del data[int(draw.integers(1, len(data))) :]
        else:
            for at in draw.integers(0, len(data), 12):
                data[at] ^= 1 << int(draw.integers(8))
        path = tmp_path / "x.dcm"
        path.write_bytes(data)
        try:
            found = load_series([path], settings=MEND)
        except (DataError, MemoryError):
            continue
        assert found.raw.voxels.size > 0
