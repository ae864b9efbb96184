"""Pictures of a volume: axial, coronal and sagittal plane through one point, at true aspect."""

from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from voxscale.errors import DataError

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#0072B2")
"""Colours of labels 1, 2, ..., used in turn; told apart with any kind of colour vision (Okabe and Ito, 2008)."""

RAMP = ("#33456b", "#7d7c78", "#ffe945")
"""Dark, middle and light colour of ordered labels (after cividis; Nuñez et al., 2018), see `ramp`."""

CONVENTION = (
    "Left to right: axial, coronal, sagittal. Radiological convention: the patient's right is on the left of the axial"
    " and coronal plane, anterior is at the top of the axial and on the left of the sagittal plane."
)

GROUND = 14
"""Grey level between and around the planes."""

GAP = 8
"""Pixels between two planes."""

LETTER, LINE = 19, 3
"""Height of letters and width of outlines in pixels; a page shows the picture at about half its size."""

# Array axes shown down and across in the axial, coronal and sagittal plane, with the letters at top and left. Indices
# rise towards S, A, R, so flipping both axes puts S or A at the top and R or A on the left.
_PLANES = ((0, 1, 2, "A", "R"), (1, 0, 2, "S", "R"), (2, 0, 1, "S", "A"))


def colour_of(label: int, palette: tuple[str, ...] = PALETTE) -> str:
    """Colour of a label above 0 as #rrggbb."""
    return palette[(label - 1) % len(palette)]


def ramp(steps: int) -> tuple[str, ...]:
    """Colours of ordered labels 1 to `steps`, dark to light, as #rrggbb."""
    anchors = np.array([_rgb(colour) for colour in RAMP])
    at = np.linspace(0, len(RAMP) - 1, steps)
    mixed = np.stack([np.interp(at, range(len(RAMP)), channel) for channel in anchors.T], axis=1)
    return tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in mixed.round().astype(int))


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def focus(label: UInt8[np.ndarray, "z y x"]) -> tuple[int, int, int]:
    """The labelled voxel nearest to the middle of all labelled voxels; the centre if there are none."""
    points = np.argwhere(label > 0)
    if len(points) == 0:
        z, y, x = (size // 2 for size in label.shape)
    else:
        z, y, x = points[np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1))]
    return int(z), int(y), int(x)


def three_planes(
    volume: Float[np.ndarray, "z y x"],
    spacing: tuple[float, float, float],
    label: UInt8[np.ndarray, "z y x"] | None = None,
    prediction: UInt8[np.ndarray, "z y x"] | None = None,
    *,
    window: tuple[float, float] | None = None,
    point: tuple[int, int, int] | None = None,
    palette: tuple[str, ...] = PALETTE,
    fill: float = 0.35,
    size: tuple[int, int] = (720, 288),
    colours: UInt8[np.ndarray, "z y x 3"] | None = None,
) -> bytes:
    """Draw the three planes side by side, all in one scale, see `CONVENTION`.

    A label is drawn as outlines, a prediction as a translucent fill, so that
    both can be compared in one picture. Longer than others by its arguments.

    Args:
        volume: (z, y, x) values.
        spacing: Voxel spacing along z, y, x in mm.
        label: True label on the same grid; 0 is not drawn.
        prediction: Predicted label on the same grid.
        window: Values drawn black and white; the 0.5 and 99.5 percentile if not given.
        point: Voxel (z, y, x) that all planes go through; see `focus` for what it is if not given.
        palette: Colours of labels 1, 2, ...
        fill: Opacity of the prediction, 0 to 1.
        size: Width and height of the picture in pixels; the planes fill one of them.
        colours: Red, green and blue of each voxel, drawn in place of its grey value.

    Returns:
        A PNG, grey if nothing is overlaid.

    Raises:
        DataError: If an array is not 3D or on another grid, or the point lies outside.
    """
    _check(volume, spacing, label, prediction, point, colours)
    if point is None:
        known = label if label is not None and label.any() else prediction
        point = focus(known if known is not None else np.zeros(volume.shape, np.uint8))
    window = window or (float(np.percentile(volume, 0.5)), float(np.percentile(volume, 99.5)))
    z, y, x = extent = np.asarray(volume.shape) * spacing
    scale = min((size[0] - 2 * GAP) / (2 * x + y), size[1] / max(z, y))  # pixels per mm

    panels: list[Image.Image] = []
    for axis, down, across, top, left in _PLANES:
        shape = max(1, round(extent[across] * scale)), max(1, round(extent[down] * scale))
        if colours is None:
            panel = _grey(_cut(volume, axis, point), window).resize(shape, Image.Resampling.BICUBIC)
        else:
            panel = Image.fromarray(_cut(colours, axis, point)).resize(shape, Image.Resampling.BICUBIC)
        if prediction is not None:
            panel = _overlay(panel, _cut(prediction, axis, point), palette, fill, outline=False)
        if label is not None:
            panel = _overlay(panel, _cut(label, axis, point), palette, 1.0, outline=True)
        panels.append(_marked(panel, top, left))
    return _png(panels, size)


def _cut(array: NDArray[Any], axis: int, point: tuple[int, int, int]) -> NDArray[Any]:
    """The plane across one axis, turned as `CONVENTION` says."""
    return np.ascontiguousarray(np.take(array, point[axis], axis=axis)[::-1, ::-1])


def _grey(plane: NDArray[Any], window: tuple[float, float]) -> Image.Image:
    low, high = window
    grey = np.clip((plane.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    return Image.fromarray((grey * 255).round().astype(np.uint8))


def _check(
    volume: NDArray[np.floating],
    spacing: tuple[float, float, float],
    label: NDArray[np.uint8] | None,
    prediction: NDArray[np.uint8] | None,
    point: tuple[int, int, int] | None,
    colours: NDArray[np.uint8] | None,
) -> None:
    if colours is not None and colours.shape != (*volume.shape, 3):
        raise DataError(f"planes.colours must have shape {(*volume.shape, 3)}, not {colours.shape}", "label_grid")
    if volume.ndim != 3 or 0 in volume.shape:
        raise DataError(f"planes.volume must be 3D and not empty, not of shape {volume.shape}", "not_3d")
    if len(spacing) != 3 or not all(0 < s < np.inf for s in spacing):
        raise DataError(f"planes.spacing must be three lengths above 0 mm, not {spacing}", "bad_spacing")
    for name, other in (("label", label), ("prediction", prediction)):
        if other is not None and other.shape != volume.shape:
            raise DataError(f"planes.{name} must have shape {volume.shape}, not {other.shape}", "label_grid")
    if point is not None and not all(0 <= p < n for p, n in zip(point, volume.shape, strict=True)):
        raise DataError(f"planes.point must lie inside {volume.shape}, not at {point}", "bad_point")


def _overlay(
    panel: Image.Image, label: NDArray[Any], palette: tuple[str, ...], opacity: float, *, outline: bool
) -> Image.Image:
    """Colour the labels of one plane (voxels), as areas or as outlines inside their border."""
    wide = np.asarray(Image.fromarray(label.astype(np.uint8)).resize(panel.size, Image.Resampling.NEAREST))
    drawn = np.asarray(panel.convert("RGB")).astype(np.float64)
    for value in np.unique(wide[wide > 0]):
        mask = wide == value
        if outline:
            mask &= np.logical_not(ndimage.binary_erosion(mask, iterations=LINE))
        colour = np.array(_rgb(colour_of(int(value), palette)))
        drawn[mask] = (1 - opacity) * drawn[mask] + opacity * colour
    return Image.fromarray(drawn.round().astype(np.uint8))


def _marked(panel: Image.Image, top: str, left: str) -> Image.Image:
    """Write the side letters on a plane, with a dark rim to stay readable on bright tissue."""
    draw = ImageDraw.Draw(panel)
    light, dark = (210, 20) if panel.mode == "L" else ((210,) * 3, (20,) * 3)
    font = ImageFont.load_default(size=LETTER)
    for text, place, anchor in ((top, (panel.width / 2, 3), "ma"), (left, (4, panel.height / 2), "lm")):
        draw.text(place, text, fill=light, font=font, anchor=anchor, stroke_width=2, stroke_fill=dark)
    return panel


def _png(panels: list[Image.Image], size: tuple[int, int]) -> bytes:
    """Set planes side by side in the middle of a picture."""
    mode = panels[0].mode
    sheet = Image.new(mode, size, GROUND if mode == "L" else (GROUND,) * 3)
    at = (size[0] - sum(p.width for p in panels) - GAP * (len(panels) - 1)) // 2
    for panel in panels:
        sheet.paste(panel, (at, (size[1] - panel.height) // 2))
        at += panel.width + GAP
    out = BytesIO()
    sheet.save(out, format="PNG", compress_level=6)  # the last few per cent take several times as long
    return out.getvalue()
