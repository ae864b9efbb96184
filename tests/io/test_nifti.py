import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import voxel_sizes

from voxscale.errors import DataError
from voxscale.io.nifti import load_nifti, read_nifti
from voxscale.seed import rng

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
ODD = DATA / "odd"
REAL = sorted(DATA.glob("*_unlabelled/*.nii.gz"))[::4] + sorted(DATA.glob("odd/orientation/*.nii.gz"))
REAL += [
    p for name in ("hdr_img_pair.hdr", "mr_bigendian_int16.nii", "qform_only_bigendian.nii.gz") for p in ODD.glob(name)
]


def corners(path):
    """World place (S, A, R) and value of some voxels, by SimpleITK."""
    image = SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat64)
    shape = np.array(image.GetSize())
    for index in np.random.default_rng(0).integers(0, shape, (200, 3)).tolist():
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        yield np.array([up, -back, -left]), image.GetPixel(index)


def check_against_itk(path, tolerance):
    volume = read_nifti(path, None)
    values = volume.values()
    to_index = np.linalg.inv(volume.affine)
    for place, value in corners(path):
        index = to_index @ [*place, 1.0]
        z, y, x = np.rint(index[:3]).astype(int)
        assert np.abs(index[:3] - (z, y, x)).max() < tolerance
        assert values[z, y, x] == np.float32(value)
    assert (np.diag(volume.direction) > 0).all()


def write(path, data, affine=None, code=1, kind=nibabel.Nifti1Image, **fields):
    image = kind(data, np.eye(4) if affine is None else affine)
    image.header["sform_code"] = image.header["qform_code"] = code
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def patch(path, offset, data):
    """Overwrite header bytes of an uncompressed file."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return path


def reason(path):
    with pytest.raises(DataError) as error:
        read_nifti(path, "MR")
    assert str(path.name) not in str(error.value)
    return error.value.reason


@pytest.fixture
def ramp():
    return np.arange(9 * 10 * 11, dtype=np.int16).reshape(9, 10, 11)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_scans_lie_and_read_as_in_simpleitk(path):
    check_against_itk(path, 1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_any_orientation_lies_and_reads_as_in_simpleitk(tmp_path, seed):
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation[generator.permutation(3)] * generator.uniform(0.5, 3, 3)
    affine[:3, 3] = generator.uniform(-100, 100, 3)
    data = generator.integers(-1000, 1000, (7, 8, 9)).astype(np.int16)
    check_against_itk(write(tmp_path / "a.nii.gz", data, affine), 1e-3)


def test_same_brain_in_six_orders_gives_one_array():
    volumes = [load_nifti(path).raw for path in sorted(ODD.glob("orientation/*.nii.gz"))]
    assert all(np.array_equal(raw.voxels, volumes[0].voxels) for raw in volumes)


@pytest.mark.parametrize("kind", [">i2", "<i8", ">f4", "<f8", "u1", ">u4"])
def test_number_types_and_byte_orders(tmp_path, kind):
    data = (np.arange(8 * 9 * 10) % 251).reshape(8, 9, 10).astype(kind)
    image = nibabel.Nifti1Image(data, np.eye(4), dtype=data.dtype.newbyteorder("="))
    image = nibabel.Nifti1Image(data, np.eye(4), image.header.as_byteswapped(">") if kind[0] == ">" else image.header)
    image.to_filename(tmp_path / "a.nii")
    raw = load_nifti(tmp_path / "a.nii").raw
    assert raw.voxels.dtype == np.uint8
    assert np.array_equal(raw.voxels, data.transpose(2, 1, 0))


def test_nifti2_and_trailing_axes_and_scaling(tmp_path, ramp):
    path = write(tmp_path / "a.nii.gz", ramp[..., None, None], kind=nibabel.Nifti2Image)
    image = nibabel.load(path)
    assert np.array_equal(load_nifti(path).raw.voxels, ramp.transpose(2, 1, 0))
    image.header.set_slope_inter(0.5, 3)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[176:192] = struct.pack("<dd", 0.5, 3.0)  # scl_slope, scl_inter of NIfTI-2
    path.write_bytes(gzip.compress(bytes(raw)))
    volume = read_nifti(path, "MR")
    assert (volume.slope, volume.intercept) == (0.5, 3.0)
    assert np.array_equal(volume.values(), ramp.transpose(2, 1, 0) * np.float32(0.5) + 3)


def test_pair_of_files(tmp_path, ramp):
    nibabel.Nifti1Pair(ramp, np.eye(4)).to_filename(tmp_path / "a.hdr")
    assert np.array_equal(load_nifti(tmp_path / "a.hdr").raw.voxels, ramp.transpose(2, 1, 0))
    (tmp_path / "a.img").unlink()
    assert reason(tmp_path / "a.hdr") == "unreadable"


def test_forms_in_order(tmp_path, ramp):
    path = write(tmp_path / "a.nii", ramp, np.diag([2.0, 2.0, 2.0, 1.0]))
    patch(path, 280, struct.pack("<12f", 3, 0, 0, 0, 0, 3, 0, 0, 0, 0, 3, 0))
    assert voxel_sizes(load_nifti(path).raw.affine).tolist() == [3, 3, 3]
    patch(path, 254, struct.pack("<h", 0))
    assert voxel_sizes(load_nifti(path).raw.affine).tolist() == [2, 2, 2]
    patch(path, 252, struct.pack("<h", 0))
    image = nibabel.load(path)
    found = load_nifti(path).raw
    swap = np.eye(4)[[2, 1, 0, 3]]
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = ramp.shape[0] - 1
    assert np.allclose(found.affine, swap @ image.header.get_base_affine() @ swap @ flip)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_length_units(tmp_path, ramp, unit, factor):
    path = write(tmp_path / "a.nii", ramp, np.diag([2.0, 3.0, 4.0, 1.0]), xyzt_units=unit)
    assert np.allclose(voxel_sizes(load_nifti(path).raw.affine), np.array([4, 3, 2]) * factor)


def test_nan_and_infinity_reach_the_rules(tmp_path):
    data = np.ones((8, 8, 8), np.float32)
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    assert np.isfinite(load_nifti(write(tmp_path / "a.nii.gz", data)).raw.voxels).sum() == 510


def test_broken_gzip(tmp_path, ramp):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    whole = write(tmp_path / "a.nii.gz", noise).read_bytes()
    for cut in (0, 1, 5, 200, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        (tmp_path / "b.nii.gz").write_bytes(whole[:cut])
        assert reason(tmp_path / "b.nii.gz") == "truncated", cut
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "b.nii.gz").write_bytes(flipped)
    assert reason(tmp_path / "b.nii.gz") in ("corrupt", "truncated", "size_mismatch")
    flipped = bytearray(whole)
    flipped[-8] ^= 1
    (tmp_path / "b.nii.gz").write_bytes(flipped)
    assert reason(tmp_path / "b.nii.gz") == "corrupt"


def test_files_that_are_not_nifti(tmp_path, ramp):
    (tmp_path / "a.nii.gz").write_text("patient list, not an image\n" * 40)
    assert reason(tmp_path / "a.nii.gz") == "unreadable"
    (tmp_path / "a.nii").write_text("patient list, not an image\n" * 40)
    assert reason(tmp_path / "a.nii") == "unreadable"
    assert reason(tmp_path / "missing.nii") == "unreadable"
    path = patch(write(tmp_path / "b.nii", ramp), 344, b"xyz\0")
    assert reason(path) == "unreadable"


@pytest.mark.parametrize(
    ("offset", "data", "expected"),
    [
        (40, struct.pack("<h", 9), "bad_header"),  # dim[0]
        (42, struct.pack("<h", -9), "bad_header"),  # dim[1]
        (42, struct.pack("<hhh", 30000, 30000, 30000), "truncated"),
        (46, struct.pack("<h", 10), "size_mismatch"),  # one slice fewer than there is data
        (70, struct.pack("<h", 128), "bad_dtype"),  # RGB
        (70, struct.pack("<h", 32), "bad_dtype"),  # complex
        (70, struct.pack("<h", -9510), "bad_header"),
        (108, struct.pack("<f", 100.0), "bad_header"),  # vox_offset inside the header
        (108, struct.pack("<f", float("nan")), "bad_header"),
        (108, struct.pack("<f", float("inf")), "bad_header"),
        (112, struct.pack("<ff", 1.0, float("inf")), "bad_scaling"),
        (280, struct.pack("<12f", *[0.0] * 12), "bad_affine"),
        (280, struct.pack("<f", float("nan")), "bad_affine"),
        (284, struct.pack("<f", 0.5), "sheared"),
        (252, struct.pack("<hhf", 0, 0, 0) + b"", None),
    ],
)  # fmt: skip
def test_damaged_headers(tmp_path, ramp, offset, data, expected):
    path = patch(write(tmp_path / "a.nii", ramp), offset, data)
    if expected is None:
        assert load_nifti(path).raw.voxels.shape == (11, 10, 9)
    else:
        assert reason(path) == expected


@pytest.mark.parametrize("sizes", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))])
@pytest.mark.parametrize("qform", [0, 1])
def test_pixel_sizes_matter_without_sform(tmp_path, ramp, sizes, qform):
    path = write(tmp_path / "a.nii", ramp)
    patch(path, 80, struct.pack("<3f", *sizes))
    assert load_nifti(path).raw.voxels.shape == (11, 10, 9)  # the sform needs no pixdim
    patch(path, 252, struct.pack("<hh", qform, 0))
    assert reason(path) == "bad_affine"


def test_only_three_axes_and_volumes(tmp_path):
    assert reason(write(tmp_path / "a.nii.gz", np.ones((3, 4, 5, 1, 2), np.uint8))) == "not_3d"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_volumes_along_the_fourth_axis(tmp_path, name):
    data = np.random.default_rng(0).integers(-99, 99, (9, 10, 11, 3)).astype(np.int16)
    kind = nibabel.Nifti1Pair if name == "a.hdr" else nibabel.Nifti1Image
    kind(data, np.eye(4)).to_filename(tmp_path / name)
    for part in range(3):
        found = load_nifti(tmp_path / name, part)
        assert (found.part, found.parts) == (part, 3)
        assert np.array_equal(found.raw.values(), data[..., part].transpose(2, 1, 0))
    with pytest.raises(DataError, match="part must be 0 to 2"):
        load_nifti(tmp_path / name, 3)


def test_damage_in_another_volume_is_noticed(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(9, 10, 11, 3)))
    path.write_bytes(path.read_bytes()[:-200])
    assert reason(path) == "truncated"


def test_one_slice(tmp_path):
    data = np.random.default_rng(0).integers(0, 99, (9, 10)).astype(np.int16)
    assert load_nifti(write(tmp_path / "a.nii", data)).raw.voxels.shape == (1, 10, 9)


def test_colour(tmp_path):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours = np.random.default_rng(0).integers(0, 255, (9, 10, 1, 3)).astype(np.uint8)
    data = np.ascontiguousarray(colours).view(kind)[..., 0]
    found = load_nifti(write(tmp_path / "a.nii", data))
    assert np.array_equal(found.raw.voxels, colours.transpose(3, 2, 1, 0))
    assert reason(write(tmp_path / "b.nii", np.repeat(data, 4, axis=2))) == "bad_dtype"


def test_two_orientations_are_told(tmp_path, ramp):
    path = write(tmp_path / "a.nii", ramp)
    assert load_nifti(path).notes == ()
    patch(path, 280, struct.pack("<12f", 3, 0, 0, 0, 0, 3, 0, 0, 0, 0, 3, 0))
    assert "two different orientations" in load_nifti(path).notes[0]
    assert voxel_sizes(load_nifti(path).raw.affine).tolist() == [3, 3, 3]
    patch(path, 252, struct.pack("<hh", 0, 0))
    assert "by convention only" in load_nifti(path).notes[0]


ODD_VERDICTS = {
    "5d_small.nii": "not_3d",
    "complex64.nii.gz": "bad_dtype",
    "derived/4d_one_volume.nii.gz": (1, (40, 47, 34)),
    "derived/constant.nii.gz": (1, (40, 47, 34)),
    "derived/empty_file.nii.gz": "truncated",
    "derived/int64.nii.gz": (1, (40, 47, 34)),
    "derived/name with spaces (1).nii.gz": (1, (40, 47, 34)),
    "derived/nan_inf.nii.gz": (1, (40, 47, 34)),
    "derived/negative_pixdim.nii.gz": (1, (40, 47, 34)),
    "derived/no_form_codes.nii.gz": (1, (40, 47, 34)),
    "derived/pair_image.nii.gz": (1, (40, 47, 34)),
    "derived/pair_label_affine_mismatch.nii.gz": (1, (40, 47, 34)),
    "derived/pair_label_empty.nii.gz": (1, (40, 47, 34)),
    "derived/pair_label_fractional.nii.gz": (1, (40, 47, 34)),
    "derived/pair_label_negative_255.nii.gz": (1, (40, 47, 34)),
    "derived/pair_label_shape_mismatch.nii.gz": (1, (37, 47, 34)),
    "derived/plain_named_gz.nii.gz": "unreadable",
    "derived/scl_slope_nan.nii.gz": (1, (40, 47, 34)),
    "derived/sform_qform_mismatch.nii.gz": (1, (40, 34, 47)),
    "derived/singular_sform.nii.gz": "bad_affine",
    "derived/slice_2d.nii.gz": (1, (1, 47, 34)),
    "derived/truncated.nii.gz": "truncated",
    "derived/zero_pixdim.nii.gz": "bad_affine",
    "fuzz_bad_header.nii": "unreadable",
    "hdr_img_pair.hdr": (1, (34, 41, 62)),
    "hippocampus_118_without_label.nii.gz": (1, (33, 52, 37)),
    "int64_3x3x3.nii": (1, (3, 3, 3)),
    "mr_4d_2vol.nii.gz": (2, None),
    "mr_bigendian_int16.nii": (1, None),
    "nifti2_4d.nii.gz": (2, (12, 20, 32)),
    "not_a_nifti.nii": "unreadable",
    "qform_only_bigendian.nii.gz": (1, (21, 64, 64)),
    "rgb24_3x3x3.nii": "bad_dtype",
    "shear_affine_ct_phantom.nii.gz": "sheared",
    **{f"orientation/{name}.nii.gz": (1, None) for name in ("ALS", "IPL", "LPS", "PSR", "RAS", "SAR")},
}
"""What happens to every odd file: number of volumes and shape, or the reason."""


@pytest.mark.skipif(not ODD.is_dir(), reason="real files are not here")
@pytest.mark.parametrize("place", ODD_VERDICTS)
def test_verdict_on_every_odd_file(place):
    expected = ODD_VERDICTS[place]
    if isinstance(expected, str):
        with pytest.raises(DataError) as error:
            load_nifti(ODD / place)
        assert error.value.reason == expected
        return
    found = load_nifti(ODD / place)
    assert found.parts == expected[0]
    assert expected[1] in (None, found.raw.voxels.shape)
    # The same place holds the same value as nibabel says.
    image = nibabel.load(ODD / place)
    data = np.asanyarray(image.dataobj)
    data = data[..., 0] if data.ndim == 4 else data.reshape((*data.shape, 1)[:3])
    values, to_index = found.raw.values(), np.linalg.inv(found.raw.affine)
    scale = 0.001 if image.header.get_xyzt_units()[0] == "micron" else 1.0
    for spot in np.random.default_rng(0).integers(0, data.shape, (50, 3)):
        right, front, up = (image.affine @ [*spot, 1.0])[:3] * scale
        z, y, x = np.rint((to_index @ [up, front, right, 1.0])[:3]).astype(int)
        if "no orientation" not in str(found.notes):  # nibabel flips none of the axes then
            assert np.array_equal(values[z, y, x], data[tuple(spot)], equal_nan=True)


def test_odd_verdicts_name_every_file():
    names = {p.relative_to(ODD).as_posix() for p in ODD.rglob("*") if p.is_file()}
    assert names <= {*ODD_VERDICTS, "hdr_img_pair.img"}


@pytest.mark.skipif(not ODD.is_dir(), reason="real files are not here")
@pytest.mark.parametrize("place", ["derived/pair_label_empty.nii.gz", "mr_4d_2vol.nii.gz", "int64_3x3x3.nii"])
def test_damaged_files_end_in_a_reason(place, tmp_path):
    whole = (ODD / place).read_bytes()
    for number in range(30):
        draw = rng(0, "damage", place, number)
        data = bytearray(whole)
        if number % 3 == 0:
            del data[int(draw.integers(0, len(data))) :]
        elif number % 3 == 1:
            for at in draw.integers(0, min(len(data), 400), 8):
                data[at] ^= 1 << int(draw.integers(8))
        else:
            other = (ODD / "mr_bigendian_int16.nii").read_bytes()
            data[: min(348, len(data))] = other[: min(348, len(data))]
        path = tmp_path / ("x.nii.gz" if place.endswith(".gz") else "x.nii")
        path.write_bytes(data)
        try:
            assert load_nifti(path).raw.voxels.size > 0
        except (DataError, MemoryError):
            continue
