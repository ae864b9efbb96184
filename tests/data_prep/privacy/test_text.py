import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_prep.privacy.config import PrivacyConfig
from data_prep.privacy.text import find_text
from voxscale.errors import ConfigError, DataError
from voxscale.io import load_file
from voxscale.seed import rng

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
OFF = PrivacyConfig(ocr="off")


def scan(shape=(8, 200, 240)):
    values = rng(0, "scan").normal(100, 30, shape)
    values[:, 60:150, 60:180] += 300
    return values.astype(np.float32)


def write(values, text, size, ink, at=(8, 10)):
    """Burn text into every slice."""
    picture = Image.new("L", values.shape[:0:-1])
    ImageDraw.Draw(picture).text(at, text, fill=255, font=ImageFont.load_default(size))
    return np.where(np.asarray(picture) > 127, np.float32(ink), values)


@pytest.mark.parametrize("text", ["DOE JOHN 1970", "PAT 12345", "St. Mary 04/05/1999"])
@pytest.mark.parametrize("size", [12, 16, 28])
@pytest.mark.parametrize("ink", [1000.0, -500.0])
def test_burned_in_text_is_found(text, size, ink):
    found = find_text(write(scan(), text, size, ink), "MR", False, OFF)
    assert found.found
    assert "glyphs in a row" in found.reason
    assert "DOE" not in found.reason


@pytest.mark.parametrize("text", ["L", "R", "AP"])
def test_side_marks_are_not_text(text):
    assert not find_text(write(scan(), text, 28, 1000.0), "XR", False, OFF).found


def test_plain_and_odd_images_hold_no_text():
    for values in (scan(), np.zeros((3, 9, 9), np.float32), np.full((1, 20, 20), np.nan, np.float32)):
        assert not find_text(values, "MR", False, OFF).found
    stripes = np.tile((np.arange(240) % 4 < 2).astype(np.float32), (4, 200, 1))
    assert not find_text(stripes, "MR", False, OFF).found


def test_colour_images_are_looked_at():
    grey = write(scan((1, 120, 240)), "NAME 1234", 20, 1000.0)
    assert find_text(np.stack([grey] * 3), "US", True, OFF).found


def test_a_missing_recogniser_that_is_required_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="privacy.ocr"):
        find_text(scan(), "MR", False, PrivacyConfig(ocr="require"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("tesseract"), reason="needs tesseract")
def test_the_recogniser_reads_what_the_glyphs_do_not_tell():
    """Anti-aliased grey words without a pixel of full ink; what was read is not told."""
    picture = Image.new("L", (480, 160), 40)
    ImageDraw.Draw(picture).text((30, 50), "PATIENT MILLER", fill=170, font=ImageFont.load_default(36))
    values = np.asarray(picture, dtype=np.float32)[None].copy()
    values[0, 0, 0] = 255
    assert not find_text(values, "XR", True, OFF).found
    found = find_text(values, "XR", True, PrivacyConfig(ocr="require"))
    assert (found.found, found.ocr) == (True, True)
    assert "MILLER" not in found.reason
    plain = find_text(scan((1, 160, 480)), "XR", True, PrivacyConfig())
    assert (plain.found, plain.ocr) == (False, True)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"privacy\.face must be known"):
        PrivacyConfig(face="maybe")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not here")
def test_no_real_scan_is_taken_for_text():
    """Among them `odd/orientation`, whose burnt-in letters are single marks and tell nobody's name."""
    paths = [*DATA.glob("*_unlabelled/*"), *sorted(DATA.glob("labelled/*/images/*"))[::3]]
    paths += [*DATA.glob("odd/orientation/*"), *sorted(DATA.glob("2d/*/images/*"))[::5]]
    for path in paths:
        volume = load_file(path).volume()
        values = volume.values()
        assert not find_text(values, volume.modality, volume.shape[0] == 1, OFF).found, path.name
