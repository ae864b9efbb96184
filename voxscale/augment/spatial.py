"""Random zoom, mirroring and rotation, written as one matrix from patch to scan voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxscale.config import config, require
from voxscale.volume import Triple


@config
class SpatialConfig:
    """How far crops may differ from the scan in size, side and orientation.

    Attributes:
        zoom: Least and greatest physical extent of a crop, as a factor of the patch's own extent
            (above 1 the crop shows more of the body, smaller).
        zoom_per_axis: Whether each axis has a factor of its own.
        flip: Probability of mirroring along z, y, x.
        rotate: Greatest angle about the z, y, x axis in degrees.
    """

    zoom: tuple[float, float] = (0.7, 1.5)
    zoom_per_axis: bool = True
    flip: Triple = (0.5, 0.5, 0.5)
    rotate: Triple = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        low, high = self.zoom
        require(0.1 <= low <= high <= 10, "spatial.zoom", "two rising factors from 0.1 to 10", self.zoom)
        require(all(0 <= p <= 1 for p in self.flip), "spatial.flip", "three probabilities", self.flip)
        require(all(0 <= a <= 180 for a in self.rotate), "spatial.rotate", "three angles of 0 to 180", self.rotate)


@dataclass(frozen=True, slots=True)
class Spatial:
    """One drawn transform.

    Attributes:
        zoom: Factor of the physical extent along z, y, x.
        flips: Whether z, y, x are mirrored.
        angles: Rotation about z, y, x in degrees.
    """

    zoom: Triple = (1.0, 1.0, 1.0)
    flips: tuple[bool, bool, bool] = (False, False, False)
    angles: Triple = (0.0, 0.0, 0.0)


def sample(rng: np.random.Generator, config: SpatialConfig) -> Spatial:
    """Draw a transform; the number of draws does not depend on the config."""
    zoom = rng.uniform(*config.zoom, size=3)
    z, y, x = zoom if config.zoom_per_axis else zoom[[0, 0, 0]]
    flip_z, flip_y, flip_x = rng.random(3) < np.asarray(config.flip)
    about_z, about_y, about_x = rng.uniform(-1, 1, size=3) * np.asarray(config.rotate)
    return Spatial(
        zoom=(float(z), float(y), float(x)),
        flips=(bool(flip_z), bool(flip_y), bool(flip_x)),
        angles=(float(about_z), float(about_y), float(about_x)),
    )


def rotation(angles: Triple) -> NDArray[np.float64]:
    """3x3 rotation of (z, y, x) points in mm: about x first, then y, then z, angles in degrees.

    A positive angle turns the first towards the second of the two other axes,
    these taken in the order z, y, x.
    """
    turned = np.eye(3)
    if not any(angles):
        return turned
    for axis, angle in enumerate(np.radians(angles)):
        first, second = (other for other in range(3) if other != axis)
        one = np.eye(3)
        one[[first, second], [first, second]] = np.cos(angle)
        one[second, first] = np.sin(angle)
        one[first, second] = -np.sin(angle)
        turned = turned @ one
    return turned


def _linear(spatial: Spatial, target_spacing: Triple, scan_spacing: Triple) -> NDArray[np.float64]:
    """3x3 map of a step in the patch to a step in scan voxels."""
    steps = np.asarray(target_spacing) * spatial.zoom * np.where(spatial.flips, -1.0, 1.0)
    return (1 / np.asarray(scan_spacing))[:, None] * rotation(spatial.angles) * steps


def matrix(
    spatial: Spatial, patch_size: Sequence[int], target_spacing: Triple, scan_spacing: Triple, centre: Triple
) -> NDArray[np.float64]:
    """Map voxel indices of the network's patch to voxel indices of a box of the scan.

    A patch index is taken relative to the patch's centre, mirrored and scaled
    to mm, rotated there (so that it is a true rotation for unequal spacings
    too), and scaled to scan voxels.

    Args:
        spatial: The transform.
        patch_size: Voxels of the patch along z, y, x.
        target_spacing: Voxel spacing of the patch, before zoom, in mm.
        scan_spacing: Voxel spacing of the scan in mm.
        centre: Box index (may be fractional) that lands on the patch's centre, `(patch_size - 1) / 2`.

    Returns:
        3x4; maps (z, y, x, 1) of the patch to (z, y, x) of the box.
    """
    linear = _linear(spatial, target_spacing, scan_spacing)
    middle = (np.asarray(patch_size, dtype=np.float64) - 1) / 2
    return np.column_stack([linear, np.asarray(centre) - linear @ middle])


def extent(
    spatial: Spatial, patch_size: Sequence[int], target_spacing: Triple, scan_spacing: Triple
) -> tuple[int, int, int]:
    """Size in scan voxels of a box that covers the patch, rotated corners and interpolation included.

    A box of this size that starts at `floor(centre - (size - 1) / 2)`, or at the
    nearest voxel to it, holds both neighbours of every point of the patch.
    """
    reach = np.abs(_linear(spatial, target_spacing, scan_spacing)) @ (np.asarray(patch_size) - 1)
    z, y, x = np.ceil(reach - 1e-9).astype(int) + 3  # one voxel for the end point, two as margin
    return int(z), int(y), int(x)
