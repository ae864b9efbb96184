from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from voxscale.errors import DataError
from voxscale.report.planes import GROUND, PALETTE, colour_of, focus, ramp, three_planes

WHITE = (0.0, 1.0)


def pixels(png: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(BytesIO(png))).astype(np.int64)


def panels(picture: NDArray[np.int64]) -> list[tuple[slice, slice]]:
    """Rows and columns of each plane: runs of columns that hold anything but the ground."""
    drawn = picture != GROUND if picture.ndim == 2 else (picture != GROUND).any(axis=2)
    columns = np.flatnonzero(np.diff(np.concatenate([[0], drawn.any(axis=0).astype(int), [0]])))
    spans = [slice(a, b) for a, b in zip(columns[::2], columns[1::2], strict=True)]
    rows = [np.flatnonzero(drawn[:, span].any(axis=1)) for span in spans]
    return [(slice(int(r[0]), int(r[-1]) + 1), span) for r, span in zip(rows, spans, strict=True)]


def lengths(box: tuple[slice, slice]) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


@given(
    shape=st.tuples(*[st.integers(4, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_planes_have_the_aspect_of_the_body(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    z, y, x = np.multiply(shape, spacing)
    picture = pixels(three_planes(np.ones(shape, np.float32), spacing, window=WHITE, size=(900, 400)))
    assert picture.shape == (400, 900)
    found = [lengths(box) for box in panels(picture)]
    scale = min((900 - 16) / (2 * x + y), 400 / max(z, y))
    for got, wanted in zip(found, [(y, x), (z, x), (z, y)], strict=True):
        assert got == pytest.approx(np.multiply(wanted, scale), abs=1.01)


def test_right_and_front_are_where_radiologists_expect_them() -> None:
    volume = np.full((20, 20, 20), 0.5, np.float32)
    volume[15:, :, :] = 0.5
    point = (18, 17, 16)  # high up (S), in front (A), on the patient's right (R)
    volume[point] = 1.0
    picture = pixels(three_planes(volume, (1.0, 1.0, 1.0), window=WHITE, point=point))
    for box, down, across in zip(panels(picture), (17, 18, 18), (16, 16, 17), strict=True):
        panel = picture[box]
        size = panel.shape[0] / 20
        y, x = np.argwhere(panel == panel.max()).mean(axis=0)
        # Counted from the far end: anterior or superior at the top, right or anterior at the left.
        assert (y + 0.5) / size == pytest.approx(20 - down - 0.5, abs=0.3)
        assert (x + 0.5) / size == pytest.approx(20 - across - 0.5, abs=0.3)


def test_the_window_is_black_to_white() -> None:
    volume = np.zeros((12, 12, 12), np.float32)
    volume[:, :, 6:] = 80.0
    picture = pixels(three_planes(volume, (1.0, 1.0, 1.0), window=(-20.0, 180.0)))
    axial = picture[panels(picture)[0]]
    quarter = axial.shape[1] // 4
    # x rises to the patient's right, which is on the left: (80 + 20) / 200 and (0 + 20) / 200 of 255.
    assert axial[-5, quarter] == 128
    assert axial[-5, 3 * quarter] == 26


def test_a_constant_volume_can_be_drawn() -> None:
    assert pixels(three_planes(np.full((5, 5, 5), 3.0), (1.0, 1.0, 1.0))).max() < 256


def test_label_is_an_outline_and_prediction_a_fill() -> None:
    volume = np.zeros((30, 30, 30), np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[8:22, 8:22, 8:22] = 2
    colour = [int(PALETTE[1][i : i + 2], 16) for i in (1, 3, 5)]
    plain = (pixels(three_planes(volume, (1.0,) * 3, window=WHITE)) > 200).sum()

    outline = pixels(three_planes(volume, (1.0,) * 3, mask, window=WHITE))
    filled = pixels(three_planes(volume, (1.0,) * 3, prediction=mask, window=WHITE, fill=0.5))
    y, x = (slice(s.start + s.stop >> 1, (s.start + s.stop >> 1) + 1) for s in panels(outline)[0])
    assert outline[y, x].ravel().tolist() == [0, 0, 0]
    assert filled[y, x].ravel().tolist() == pytest.approx([c / 2 for c in colour], abs=0.51)
    edge = (outline == colour).all(axis=2).sum()
    area = (filled == np.round(np.multiply(colour, 0.5))).all(axis=2).sum()
    assert plain < 1000  # the letters alone
    side = lengths(panels(outline)[0])[0] * 14 / 30
    assert area == pytest.approx(3 * side**2, rel=0.05)
    assert edge == pytest.approx(3 * 4 * 3 * (side - 3), rel=0.05)


def test_planes_go_through_the_label() -> None:
    volume = np.zeros((20, 20, 20), np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[2:4, 16:18, 1:3] = 1
    picture = pixels(three_planes(volume, (1.0,) * 3, mask, window=WHITE))
    orange = (picture == [0xE6, 0x9F, 0x00]).all(axis=2)
    assert all(orange[box].any() for box in panels(picture))


def test_focus_is_a_labelled_voxel_near_the_middle() -> None:
    hollow = np.zeros((9, 9, 9), np.uint8)
    hollow[4, 4, [0, 1, 8]] = 1  # the middle, x = 3, is not labelled
    assert focus(hollow) == (4, 4, 1)
    assert focus(np.zeros((4, 6, 9), np.uint8)) == (2, 3, 4)


def test_colours_repeat_after_the_last() -> None:
    assert colour_of(1) == colour_of(len(PALETTE) + 1) == PALETTE[0]
    assert colour_of(3, ("#000000", "#ffffff")) == "#000000"


def test_ramp_rises_in_lightness() -> None:
    assert ramp(1) == ("#33456b",)
    assert ramp(3) == ("#33456b", "#7d7c78", "#ffe945")
    light = [sum(w * int(c[i : i + 2], 16) for w, i in ((0.3, 1), (0.6, 3), (0.1, 5))) for c in ramp(8)]
    assert light == sorted(light)
    assert len(set(light)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": np.zeros((3, 3))}, "planes.volume must be 3D"),
        ({"volume": np.zeros((3, 0, 3))}, "planes.volume must be 3D and not empty"),
        ({"spacing": (1.0, 0.0, 1.0)}, "planes.spacing must be three lengths above 0 mm"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "planes.spacing must be three lengths above 0 mm"),
        ({"label": np.zeros((3, 3, 4), np.uint8)}, "planes.label must have shape"),
        ({"prediction": np.zeros((3, 3, 4), np.uint8)}, "planes.prediction must have shape"),
        ({"point": (0, 3, 0)}, "planes.point must lie inside"),
        ({"point": (0, -1, 0)}, "planes.point must lie inside"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    good = {"volume": np.zeros((3, 3, 3)), "spacing": (1.0, 1.0, 1.0)}
    with pytest.raises(DataError, match=message):
        three_planes(**{**good, **change})
