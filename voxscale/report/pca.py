"""Colours of dense features: like features, like colours, in all crops that are shown together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

MOST = 20_000
"""Vectors that the components are found from, at most."""

SPREAD = (2.0, 98.0)
"""Percentiles of a component that become no and full colour."""


def pca_colours(
    features: Sequence[Float[np.ndarray, "c z y x"]],
) -> list[UInt8[np.ndarray, "z y x 3"]]:
    """The first three principal components of all features together as red, green and blue.

    Each component points to the side of its larger skew, so that the colours do not depend on the solver.

    Args:
        features: Of each crop; features of three components or fewer leave the last colours empty.
    """
    flat = [one.reshape(len(one), -1).T.astype(np.float64) for one in features]
    every = np.concatenate(flat)
    every = every[:: max(1, len(every) // MOST)]
    mean, std = every.mean(axis=0), every.std(axis=0)
    scale = np.where(std > 1e-6 * max(float(std.max()), 1e-30), 1 / np.maximum(std, 1e-30), 0.0)
    ready = (every - mean) * scale
    axes = np.linalg.svd(ready.T @ ready)[0][:, :3]
    shown = ready @ axes
    signs = np.where((shown**3).sum(axis=0) < 0, -1.0, 1.0)
    low, high = np.percentile(shown * signs, SPREAD, axis=0)
    out: list[NDArray[np.uint8]] = []
    for one, shape in zip(flat, (f.shape[1:] for f in features), strict=True):
        share = (((one - mean) * scale) @ axes * signs - low) / np.maximum(high - low, 1e-12)
        colours = np.zeros((len(one), 3), np.uint8)
        colours[:, : axes.shape[1]] = (np.clip(share, 0, 1) * 255).round()
        out.append(colours.reshape(*shape, 3))
    return out
