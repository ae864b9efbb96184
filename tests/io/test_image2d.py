from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import voxscale.io.image2d
from voxscale.errors import DataError
from voxscale.io import load_file
from voxscale.io.image2d import MOST_PIXELS, load_image2d
from voxscale.seed import rng

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "2d"


def reason(path, part=0):
    with pytest.raises(DataError) as error:
        load_image2d(path, part)
    assert path.name not in str(error.value)
    return error.value.reason


def draw(shape, kind=np.uint8):
    return rng(0, "picture").integers(0, np.iinfo(kind).max, shape).astype(kind)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_grey(tmp_path, ending):
    Image.fromarray(draw((9, 12))).save(tmp_path / f"a.{ending}")
    found = load_file(tmp_path / f"a.{ending}")
    assert np.array_equal(found.raw.voxels, draw((9, 12))[None])
    assert (found.modality, found.parts, found.spacing_known, found.notes) == (None, 1, False, ())
    assert found.volume().modality == "OT"
    assert found.volume().spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits(tmp_path, ending):
    Image.fromarray(draw((9, 12), np.uint16)).save(tmp_path / f"a.{ending}")
    assert np.array_equal(load_image2d(tmp_path / f"a.{ending}").raw.values(), draw((9, 12), np.uint16)[None])


def test_floats(tmp_path):
    values = rng(0, "floats").normal(size=(9, 12)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(load_image2d(tmp_path / "a.tif").raw.values(), values[None].astype(np.float64))


def test_colour(tmp_path):
    Image.fromarray(draw((9, 12, 3))).save(tmp_path / "a.png")
    found = load_image2d(tmp_path / "a.png")
    assert np.array_equal(found.raw.voxels[:, 0].transpose(1, 2, 0), draw((9, 12, 3)))
    assert found.volume().channels == 3
    assert found.volume().shape == (1, 9, 12)


def test_colours_that_are_all_grey_become_one_channel(tmp_path):
    Image.fromarray(np.repeat(draw((9, 12, 1)), 3, axis=2)).save(tmp_path / "a.png")
    found = load_image2d(tmp_path / "a.png")
    assert found.raw.voxels.shape == (1, 9, 12)
    assert "grey" in found.notes[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "YCbCr", "1"])
def test_other_modes(tmp_path, mode):
    made = Image.fromarray(draw((9, 12, 3))).convert(mode)
    made.save(tmp_path / "a.tif")
    found = load_image2d(tmp_path / "a.tif")
    assert found.raw.voxels.shape[-2:] == (9, 12)
    assert ("transparency" in str(found.notes)) == (mode in ("RGBA", "LA"))


@pytest.mark.parametrize("band", [1, 12, 30, 10_000])
@pytest.mark.parametrize("mode", ["1", "L", "I", "F", "I;16", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_bands_of_rows_are_the_picture(tmp_path, monkeypatch, mode, band):
    made = Image.fromarray(draw((9, 12, 3)))
    made = made.convert("I").point(lambda i: i * 200, "I").convert("I;16") if mode == "I;16" else made.convert(mode)
    made.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        kept = image.convert("RGB" if mode in ("RGBA", "P", "CMYK", "YCbCr") else "L" if mode == "LA" else image.mode)
        want = np.asarray(kept)
    monkeypatch.setattr(voxscale.io.image2d, "BAND", band)
    found = load_image2d(tmp_path / "a.tif").raw
    planes = want[None] if want.ndim == 2 else want.transpose(2, 0, 1)[:, None]
    assert found.voxels.shape == planes.shape
    assert np.array_equal(found.values(), planes.astype(np.float64))


def test_pages(tmp_path):
    pages = [Image.fromarray(draw((9, 12)) // (k + 1)) for k in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = load_image2d(tmp_path / "a.tif", 2)
    assert (found.part, found.parts) == (2, 3)
    assert np.array_equal(found.raw.voxels[0], draw((9, 12)) // 3)
    assert reason(tmp_path / "a.tif", 3) == "no_such_volume"


def test_turned_as_the_file_says(tmp_path):
    image = Image.fromarray(draw((9, 12)))
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x010E] = "DOE^CANARY"
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = load_image2d(tmp_path / "a.jpg")
    assert found.raw.voxels.shape == (1, 12, 9)
    assert "upright" in found.notes[0]
    assert "CANARY" not in str(found)


def test_no_text_comes_through(tmp_path):
    text = PngInfo()
    text.add_text("Patient", "DOE^CANARY")
    Image.fromarray(draw((9, 12))).save(tmp_path / "a.png", pnginfo=text)
    assert "CANARY" not in str(load_image2d(tmp_path / "a.png"))


def test_damaged_files(tmp_path):
    Image.fromarray(draw((90, 120))).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for number in range(30):
        data = bytearray(whole)
        dice = rng(0, "damage", number)
        if number % 2:
            del data[int(dice.integers(0, len(data))) :]
        else:
            for at in dice.integers(0, 200, 5):
                data[at] ^= 1 << int(dice.integers(8))
        (tmp_path / "b.png").write_bytes(data)
        try:
            assert load_image2d(tmp_path / "b.png").raw.voxels.size
        except DataError:
            continue


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert reason(tmp_path / "a.png") == "unreadable"
    assert reason(tmp_path / "missing.png") == "unreadable"


def test_a_bomb_is_not_unpacked(tmp_path):
    side = int(MOST_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert reason(tmp_path / "a.png") == "too_large"


@pytest.mark.skipif(not DATA.is_dir(), reason="real images are not here")
def test_real_images():
    for path in sorted(DATA.rglob("*.png"))[::9] + sorted(DATA.rglob("*.jpg"))[::3]:
        found = load_image2d(path)
        with Image.open(path) as image:
            assert found.raw.voxels.shape[-2:] == image.size[::-1]
            if image.mode == "L":
                assert np.array_equal(found.raw.voxels[0], np.asarray(image))
