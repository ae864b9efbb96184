"""OME-Zarr 0.5 metadata of a scan and its label."""

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np

from voxscale.volume import LabelMap, Volume


def multiscales(volume: Volume, label: bool = False) -> list[dict[str, Any]]:
    """OME-Zarr 0.5 geometry: scale and translation; the rotation stands in our own attributes alone.

    Args:
        volume: The scan.
        label: Whether this is for its label, which never has a colour axis.
    """
    colour = volume.channels > 1 and not label
    moves: list[dict[str, Any]] = [
        {"type": "scale", "scale": [1.0] * colour + list(volume.spacing)},
        {"type": "translation", "translation": [0.0] * colour + list(volume.origin)},
    ]
    axes = [{"name": "c", "type": "channel"}] * colour
    axes += [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    return [{"name": "0", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": moves}]}]


def image_label(label: LabelMap, classes: Mapping[int, str]) -> dict[str, Any]:
    """OME-Zarr 0.5 label metadata: a colour and a name for each class."""
    values = sorted(set(classes) | {int(v) for v in np.unique(label.voxels)} - {0})
    colors = [{"label-value": value, "rgba": _color(value)} for value in values]
    names = [{"label-value": value, "class": classes.get(value, str(value))} for value in values]
    return {"colors": colors, "properties": names, "source": {"image": "../../"}}


def _color(value: int) -> list[int]:
    """A colour for a class; steps of the golden angle keep neighbours apart."""
    rgb = colorsys.hsv_to_rgb(value * 0.618034 % 1.0, 0.75, 0.95)
    return [round(255 * part) for part in rgb] + [255]
