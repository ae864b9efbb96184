"""Matched nodes of two views drawn on the scans, for the report."""

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from voxscale.matching.dustbin import UNMATCHED

TRUE, FALSE, NONE = (70, 200, 90), (235, 70, 60), (240, 190, 60)
"""Colours of a true match, of a false one, and of a node that was left without one."""

SIDE, GAP, TOKEN_SIDE = 64, 8, 360
"""Pixels of the picture of a node, between two, and of the picture of a view of which tokens are nodes."""


def plane(image: Float[Tensor, "z y x"], side: int) -> UInt8[np.ndarray, "side side"]:
    """The middle axial plane, 0 to 1, as a square of grey values."""
    middle = image[len(image) // 2].float()
    grey = F.interpolate(middle[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    return (255 * grey.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()


def draw_samples(
    s: Float[Tensor, "n z y x"], t: Float[Tensor, "n z y x"], match: Int64[Tensor, " n"]
) -> NDArray[np.uint8]:
    """First views above, second ones below, a line from each node to its match; the true one stands below it.

    Returns:
        A picture (y, x, 3).
    """
    step = SIDE + GAP
    sheet = Image.new("RGB", (len(s) * step + GAP, 4 * SIDE + 2 * GAP))
    for row, views in ((GAP, s), (3 * SIDE + GAP, t)):
        for node, view in enumerate(views):
            sheet.paste(Image.fromarray(plane(view, SIDE)), (GAP + node * step, row))
    draw = ImageDraw.Draw(sheet)
    for node, other in enumerate(match.tolist()):
        start, end = (GAP + at * step + SIDE // 2 for at in (node, other))
        draw.line([(start, GAP + SIDE), (end, 3 * SIDE + GAP)], fill=TRUE if node == other else FALSE, width=3)
    return np.asarray(sheet)


def draw_tokens(
    views: tuple[Float[Tensor, "z y x"], Float[Tensor, "z y x"]],
    spots: tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]],
    match: Int64[Tensor, " n"],
    truth: Int64[Tensor, " n"],
) -> NDArray[np.uint8]:
    """Two views side by side through their middle, nodes of all planes on them, a line from each to its match.

    Args:
        views: Images, 0 to 1.
        spots: Place (y, x) of each node as a share of the view's sides; not finite where there is no node.
        match: Target of each source node, or `UNMATCHED`.
        truth: As `match`.

    Returns:
        A picture (y, x, 3).
    """
    sheet = Image.new("RGB", (2 * TOKEN_SIDE + GAP, TOKEN_SIDE))
    for number, view in enumerate(views):
        sheet.paste(Image.fromarray(plane(view, TOKEN_SIDE)), (number * (TOKEN_SIDE + GAP), 0))
    draw = ImageDraw.Draw(sheet)
    at = [(part.double() * TOKEN_SIDE).flip(1).cpu().numpy() for part in spots]
    at[1] = at[1] + np.array([TOKEN_SIDE + GAP, 0])
    for node, (found, true) in enumerate(zip(match.tolist(), truth.tolist(), strict=True)):
        x, y = at[0][node]
        if not np.isfinite(x):
            continue
        colour = TRUE if found == true else FALSE
        if found != UNMATCHED and np.isfinite(at[1][found][0]):
            draw.line([(x, y), tuple(at[1][found])], fill=colour, width=1)
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=NONE if found == UNMATCHED == true else colour)
    return np.asarray(sheet)
