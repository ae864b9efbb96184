"""OME-Zarr 0.5 metadata of a scan and its label."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

from voxscale.kernel.filters import different
from voxscale.pyramid import Level
from voxscale.volume import LabelMap, Volume


def multiscales(volume: Volume, levels: Sequence[Level], label: bool = False) -> list[dict[str, Any]]:
    """OME-Zarr 0.5 geometry: scale and translation; the rotation stands in our own attributes alone.

    Args:
        volume: The scan.
        levels: Of its pyramid.
        label: Whether this is for its label, which never has a colour axis.
    """
    colour = volume.channels > 1 and not label
    axes = [{"name": "c", "type": "channel"}] * colour
    axes += [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    datasets = [
        {"path": str(number), "coordinateTransformations": _moves(volume, level, colour)}
        for number, level in enumerate(levels)
    ]
    return [{"name": "0", "axes": axes, "datasets": datasets}]


def _moves(volume: Volume, level: Level, colour: bool) -> list[dict[str, Any]]:
    """Spacing of a level, and the centre of its first voxel, in mm."""
    scale = [mm * f for mm, f in zip(volume.spacing, level.factor, strict=True)]
    inward = [(f - 1) / 2 * mm for mm, f in zip(volume.spacing, level.factor, strict=True)]
    centre = [first + more for first, more in zip(volume.origin, inward, strict=True)]
    return [
        {"type": "scale", "scale": [1.0] * colour + scale},
        {"type": "translation", "translation": [0.0] * colour + centre},
    ]


def image_label(label: LabelMap, classes: Mapping[int, str]) -> dict[str, Any]:
    """OME-Zarr 0.5 label metadata: a colour and a name for each class."""
    values = sorted(set(classes) | {int(v) for v in different(label.voxels)} - {0})
    colors = [{"label-value": value, "rgba": _color(value)} for value in values]
    names = [{"label-value": value, "class": classes.get(value, str(value))} for value in values]
    return {"colors": colors, "properties": names, "source": {"image": "../../"}}


def _color(value: int) -> list[int]:
    """A colour for a class; steps of the golden angle keep neighbours apart."""
    rgb = colorsys.hsv_to_rgb(value * 0.618034 % 1.0, 0.75, 0.95)
    return [round(255 * part) for part in rgb] + [255]
