import io

import numpy as np
import pytest
from PIL import Image

from voxscale.report.thumbnail import thumbnail


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [
        ((20, 40, 80), (3.0, 1.0, 1.0), (96, 48)),
        ((5, 80, 40), (3.0, 1.0, 2.0), (96, 96)),
        ((1, 30, 10), (1.0, 1.0, 1.0), (32, 96)),
        ((3, 1, 50, 50), (1.0, 1.0, 1.0), (96, 96)),
        ((4, 2, 3000), (1.0, 1.0, 1.0), (96, 1)),
    ],
)
def test_true_proportions(shape, spacing, size):
    png = thumbnail(np.random.default_rng(0).normal(size=shape), spacing)
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == size
        assert image.mode == ("RGB" if len(shape) == 4 else "L")
    assert png == thumbnail(np.random.default_rng(0).normal(size=shape), spacing)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1e30])
def test_strange_values(value):
    assert thumbnail(np.full((3, 9, 9), value), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("shape", [(1, 90, 70), (3, 1, 90, 70)])
def test_parts_are_what_all_at_once_gives(monkeypatch, shape):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    values[..., 3, 5:9] = [np.nan, np.inf, -np.inf, 1e30]
    whole = thumbnail(values, (1.0, 1.0, 1.0))
    monkeypatch.setattr("voxscale.report.thumbnail.BAND", 150)
    assert thumbnail(values, (1.0, 1.0, 1.0)) == whole
    plain = np.sort(values[np.isfinite(values)].astype(np.float64))
    ends = tuple(np.interp(np.array([0.01, 0.99]) * (len(plain) - 1), np.arange(len(plain)), plain))
    one, two = (
        np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in (thumbnail(values, (1.0,) * 3, ends), whole)
    )
    assert abs(one - two).max() <= 1


def test_front_is_up_and_right_is_left():
    values = np.zeros((3, 96, 96))
    values[:, 80:, 80:] = 1.0  # anterior right
    image = np.asarray(Image.open(io.BytesIO(thumbnail(values, (1.0, 1.0, 1.0), (0.0, 1.0)))))
    assert image[:10, :10].min() == 255
    assert image[40:].max() == 0
