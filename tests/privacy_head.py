"""A drawn head with and without its face, for tests."""

import numpy as np
from scipy import ndimage

from voxscale.seed import rng

SPACING = (2.0, 1.5, 1.5)
SHAPE = (120, 170, 140)


def ball(centre, radii):
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    parts = ((a * s - c) / r for a, s, c, r in zip((z, y, x), SPACING, centre, radii, strict=True))
    return sum(part**2 for part in parts) < 1


def head(modality, face=True, skin=True):
    """A head 180 mm long and 150 mm wide: scalp, skull, brain, a neck, a nose, lips and eye sockets."""
    skull_centre = np.array((150.0, 120.0, 105.0))
    scalp = ball(skull_centre, (82, 90, 75))
    jaw = ball(skull_centre + np.array((-70, 25, 0)), (70, 58, 55))
    neck = ball(skull_centre + np.array((-120, -30, 0)), (90, 55, 55))
    nose = ball(skull_centre + np.array((-45, 88, 0)), (22, 18, 14))
    lips = ball(skull_centre + np.array((-85, 72, 0)), (12, 16, 22))
    bone = ball(skull_centre, (74, 82, 67))
    brain = ball(skull_centre, (66, 74, 59))
    body = scalp | neck | ((jaw | nose | lips) & face)
    for side in (-32, 32):
        body &= ~(ball(skull_centre + np.array((-35, 86, side)), (10, 14, 14)) & face)
    if not face:  # as publishers remove it: all in front of a plane, from the brow down
        z, y, _ = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
        cut = (z * SPACING[0] < 148) & (y * SPACING[1] > 170)
        body, bone, brain = body & ~cut, bone & ~cut, brain & ~cut
    if not skin:
        body, bone = brain, brain
    air, soft, hard, grey = (-1000.0, 40.0, 900.0, 35.0) if modality == "CT" else (0.0, 320.0, 40.0, 400.0)
    values = np.full(SHAPE, air)
    values[body] = soft
    values[bone & body] = hard
    values[brain] = grey
    values = ndimage.gaussian_filter(values, 0.5) + rng(0, "noise").normal(0, 5, SHAPE)
    if modality == "MR":
        values = np.where(ndimage.binary_dilation(body, iterations=2), np.abs(values), 0)
    return values.astype(np.float32), brain, body
