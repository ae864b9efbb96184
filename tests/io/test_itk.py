import numpy as np
import pytest
import SimpleITK

from voxscale.errors import DataError
from voxscale.io import load_file, suffix_of
from voxscale.io.itk import data_file, load_itk, read_itk
from voxscale.io.nifti import load_nifti


@pytest.fixture
def image():
    generator = np.random.default_rng(0)
    image = SimpleITK.GetImageFromArray(generator.integers(-1000, 1000, (9, 10, 11)).astype(np.int16))
    image.SetSpacing((0.5, 1.5, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    angle = np.radians(20)
    c, s = np.cos(angle), np.sin(angle)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, -1))
    return image


def reason(path):
    with pytest.raises(DataError) as error:
        read_itk(path, "MR")
    assert path.name not in str(error.value)
    return error.value.reason


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_same_scan_as_through_nifti(tmp_path, image, name, compress):
    SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=compress)
    SimpleITK.WriteImage(image, str(tmp_path / "b.nii"))
    found, expected = load_file(tmp_path / name).raw, load_nifti(tmp_path / "b.nii").raw
    assert np.array_equal(found.voxels, expected.voxels)
    assert np.allclose(found.affine, expected.affine, atol=1e-4)
    assert found.voxels.dtype == np.int16


def test_damaged_files(tmp_path, image):
    for name in ("a.nrrd", "a.mha"):
        for compress in (False, True):
            SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=compress)
            raw = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(raw[:-200])
            expected = "truncated" if compress and name == "a.mha" else "undecodable"
            assert reason(tmp_path / name) == expected
        (tmp_path / name).write_text("nothing of the kind")
        assert reason(tmp_path / name) == "unreadable"
        (tmp_path / name).unlink()
        assert reason(tmp_path / name) == "unreadable"


def test_only_three_axes_of_real_numbers(tmp_path, image):
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SimpleITK.JoinSeries([image, image])] * 2), str(path))
    assert reason(path) == "not_3d"
    SimpleITK.WriteImage(image[:, :, 0], str(path))
    assert reason(path) == "not_3d"
    SimpleITK.WriteImage(SimpleITK.Compose(image, image, image), str(path))
    assert reason(path) == "bad_dtype"


def test_geometry_must_be_stated(tmp_path, image):
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(image, str(path))
    raw = path.read_bytes().replace(b"ElementSpacing", b"ElementXpacing")
    path.write_bytes(raw)
    assert reason(path) == "no_geometry"


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "a/b.raw", "..", "LIST", "part%d.raw"])
def test_data_must_lie_beside_its_header(tmp_path, image, name):
    path = tmp_path / "a.mhd"
    SimpleITK.WriteImage(image, str(path))
    assert data_file(path) == tmp_path / "a.raw"
    path.write_text(path.read_text().replace("a.raw", name))
    assert reason(path) == "unsafe_path"


def test_unknown_endings(tmp_path):
    assert suffix_of(tmp_path / "A.B.NII.GZ") == ".nii.gz"
    with pytest.raises(DataError, match="must be one of"):
        load_file(tmp_path / "a.xyz")


def test_itk_modality(tmp_path, image):
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert read_itk(tmp_path / "a.nrrd", None).modality == "CT"
    assert load_itk(tmp_path / "a.nrrd").raw.voxels.min() >= -1000


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_volumes_along_a_fourth_axis(tmp_path, image, name):
    other = image + 7
    SimpleITK.WriteImage(SimpleITK.JoinSeries([image, other]), str(tmp_path / name))
    first, second = (load_itk(tmp_path / name, part) for part in range(2))
    assert (first.parts, second.part) == (2, 1)
    assert np.array_equal(first.raw.values() + 7, second.raw.values())
    assert np.allclose(first.raw.affine, second.raw.affine)
    with pytest.raises(DataError, match="part must be 0 to 1"):
        load_itk(tmp_path / name, 2)


def test_flipped_bits_in_compressed_data_are_noticed(tmp_path, image):
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    whole = path.read_bytes()
    for at in range(len(whole) - 400, len(whole) - 1, 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert reason(path) in ("corrupt", "truncated")


def test_a_lost_data_file_is_told(tmp_path, image):
    for compress in (False, True):
        SimpleITK.WriteImage(image, str(tmp_path / "a.mhd"), useCompression=compress)
        (tmp_path / ("a.zraw" if compress else "a.raw")).unlink()
        assert reason(tmp_path / "a.mhd") in ("truncated", "undecodable")
