"""A small description of a scan by which its copies are known: resampled, cropped, mirrored, windowed, noisy.

Blobs of a few millimetres are found (extrema of a difference of Gaussians;
Lindeberg 1998), and around each the mean, spread and range of the values on
spheres of growing radius are kept, which no rotation or mirroring changes.
Two scans are the same if blobs that look alike also lie alike: distances
between them agree. Distances do not change under cropping or mirroring either.
"""

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.levels import Levels
from data_prep.values import grey_of
from voxscale.kernel.coarse import Means, coarse, coarse_parts
from voxscale.kernel.filters import TRUNCATE, Planes, gaussian, maximum

RECIPE = 2
"""Rises when the same scan would be described otherwise."""

COARSE_MM, FINE_MM, SMALL_MM = 3.0, 1.0, 90.0
"""Grid on which scans are described, and the finer one for fields of view smaller than so many mm (cube root)."""
POINTS = 128
"""Most blobs kept."""
MARGIN = 4
"""Grid cells next to the border without blobs, fewer where a scan is thin: what lies outside would count."""
SIGMA, WIDER, REACH = 1.5, 1.6, 2
"""Width of the narrow Gaussian in grid cells, of the wide one over it, and cells around a blob that are weaker."""
TOGETHER = 1 << 17
"""Grid cells that are looked at together, about."""
KEPT_CELLS, KEPT_SHARE = 1 << 20, 0.4
"""The grid is kept up to so many cells, or so many for each voxel; a larger one is made twice, slice by slice."""
RADII = (1.0, 2.0, 3.0, 4.0, 5.0)
"""Radii of the spheres in grid cells."""
SIZE = 4 * len(RADII)
"""Numbers per blob."""
MARK, HEAD = b"VSDE", struct.Struct("<4sII")
"""Beginning of a descriptor's file: mark, recipe, number of blobs."""
STEPS = 24.0
"""Quantisation: 24 steps per standard deviation."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is kept of one scan, 3.3 KB at most.

    Attributes:
        points: (n, 3) places of the blobs in mm, float16.
        looks: (n, SIZE) what is around them, int8.
    """

    points: NDArray[np.float16]
    looks: NDArray[np.int8]

    @property
    def overall(self) -> NDArray[np.int8]:
        """(3 * SIZE,) one vector for the search: quartiles over the blobs; zeros without blobs."""
        if len(self.looks) == 0:
            return np.zeros(3 * SIZE, dtype=np.int8)
        return np.percentile(self.looks.astype(np.float32), (25, 50, 75), axis=0).astype(np.int8).ravel()

    def to_bytes(self) -> bytes:
        """The descriptor as a file: a mark, recipe, number of blobs, their places, what is around them."""
        head = HEAD.pack(MARK, RECIPE, len(self.points))
        return head + self.points.astype("<f2").tobytes() + self.looks.tobytes()


def read_descriptor(data: bytes) -> Descriptor | None:
    """A descriptor from `to_bytes`; None if it is none, or one of another recipe."""
    if len(data) < HEAD.size:
        return None
    mark, recipe, count = HEAD.unpack_from(data)
    if (mark, recipe) != (MARK, RECIPE) or len(data) != HEAD.size + count * (6 + SIZE):
        return None
    points = np.frombuffer(data, "<f2", 3 * count, HEAD.size).reshape(count, 3)
    return Descriptor(points, np.frombuffer(data, np.int8, SIZE * count, HEAD.size + 6 * count).reshape(count, SIZE))


def describe(values: Planes, spacing: tuple[float, float, float], sample: Levels | None = None) -> Descriptor:
    """Describe one scan.

    Args:
        values: (z, y, x), or (3, 1, y, x) in colour; 2D images are described in their plane.
        spacing: mm along z, y, x.
        sample: The different values of every `sampled(values)`-th slice, if they were counted; all are finite then.
    """
    sample = sample if len(values.shape) == 3 else None
    grey = grey_of(values)
    grid = _Grid(grey if sample else _Finite(grey), spacing, sample)
    points = _strongest(grid)
    looks = _spheres(_around(grid, points))
    return Descriptor((points * grid.cell).astype(np.float16), looks)


class _Finite:
    """Values with numbers in the place of those that are not."""

    def __init__(self, values: Planes) -> None:
        self._values, self.shape = values, values.shape

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, where: Any) -> NDArray[np.float32]:
        return np.nan_to_num(self._values[where])


def sampled(values: Planes) -> int:
    """Of how many slices one is enough to tell the range of the values."""
    return max(1, len(values) // 64)


class _Grid:
    """The scan on an even grid, smoothed against aliasing, its values between the 1st and 99th percentile.

    Args:
        values: (z, y, x).
        spacing: mm along z, y, x.
        sample: As in `describe`.

    Attributes:
        shape: Cells along each axis.
        cell: mm from one to the next.
    """

    def __init__(self, values: Planes, spacing: tuple[float, float, float], sample: Levels | None) -> None:
        extent = [n * mm for n, mm in zip(values.shape, spacing, strict=True) if n > 1]
        self.cell = FINE_MM if np.prod(extent) ** (1 / max(len(extent), 1)) < SMALL_MM else COARSE_MM
        low, high = sample.percentiles((1, 99)) if sample else _ends(values)
        ratios = [self.cell / mm if n > 1 else 1.0 for n, mm in zip(values.shape, spacing, strict=True)]
        size = [max(1, round(ratio)) for ratio in ratios]
        steps = [max(1, int(ratio)) for ratio in ratios]
        self._values, self._means = values, Means(size, steps, "nearest", (float(low), float(high)))
        # The first sample of each axis stays where it is, so that indices times the cell are mm from it.
        places = self._means.shape(values.shape)
        ends = [(n - 1) * step / ratio for n, step, ratio in zip(places, steps, ratios, strict=True)]
        counts = [max(1, int(end) + 1) for end in ends]
        self._where = [np.arange(n) * r / s for n, r, s in zip(counts, ratios, steps, strict=True)]
        self.shape = tuple(counts)
        small = math.prod(counts) <= max(KEPT_CELLS, KEPT_SHARE * math.prod(values.shape))
        self._kept = coarse(values, self._means, self._where) if small else None

    def layers(self) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """First slice, smooth slices and strengths of their cells, in order, some slices at a time, to be had once."""
        if self._kept is None:
            yield from _layers(coarse_parts(self._values, self._means, self._where), self.shape)
            return
        per = _together(self.shape)
        parts = (self._kept[start : start + per] for start in range(0, len(self._kept), per))
        for start, smooth, strength in _layers(parts, self.shape):
            self._kept[start : start + len(smooth)] = smooth  # what is still looked at of it was copied
            yield start, smooth, strength

    def smooth(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The smooth slices again, after `layers`."""
        if self._kept is not None:
            return iter([(0, self._kept)])
        return ((start, smooth) for start, smooth, _ in self.layers())


def _together(shape: tuple[int, ...]) -> int:
    return max(1, TOGETHER // max(1, shape[1] * shape[2]))


def _ends(values: Planes) -> NDArray[np.floating[Any]]:
    """1st and 99th percentile of some slices, which are made one by one, as all at once need twice their memory."""
    places = range(0, len(values), sampled(values))
    drawn = np.empty((len(places), *values.shape[1:]), dtype=np.float32)
    for row, place in enumerate(places):
        drawn[row] = values[place]
    return np.percentile(drawn, (1, 99), overwrite_input=True)


def _layers(
    parts: Iterable[NDArray[np.float32]], shape: tuple[int, ...]
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """See `_Grid.layers`; what is kept of the parts is copied."""
    sigma = [SIGMA * (n > 1) for n in shape]
    halo = int(TRUNCATE * WIDER * sigma[0] + 0.5)
    per, height = _together(shape), shape[0]
    room, low, end, start = np.empty((2 * (per + halo), *shape[1:]), dtype=np.float32), 0, 0, 0
    for fresh in (some[at : at + per] for some in parts for at in range(0, len(some), per)):
        room[end - low : end - low + len(fresh)] = fresh
        end += len(fresh)
        while start < height and (end == height or start + per + halo <= end):
            stop = min(start + per, height)
            part, span = room[: min(stop + halo, end) - low], (start - low, stop - low)
            smooth = gaussian(part, sigma, span)
            strength = smooth - gaussian(part, [WIDER * width for width in sigma], span)
            yield start, smooth, np.abs(strength, out=strength)
            start, gone = stop, max(0, stop - halo) - low
            left = end - low - gone if gone else 0
            for place in range(left):  # in its place, as a copy of all would need as much again
                room[place] = room[place + gone]
            low += gone


def _strongest(grid: _Grid) -> NDArray[np.int64]:
    """Grid indices (n, 3) of the strongest blobs inside the margin."""
    height = grid.shape[0]
    found: list[NDArray[np.int64]] = []
    strengths: list[NDArray[np.float32]] = []
    near, done = np.empty((0, *grid.shape[1:]), dtype=np.float32), 0  # strengths of the slices before `start`
    for start, smooth, fresh in grid.layers():
        stop = start + len(smooth)
        near = np.concatenate([near, fresh])
        begin, ready = stop - len(near), stop if stop == height else max(done, stop - REACH)
        places, strength = _peaks(near, range(begin, height), (done - begin, ready - begin), grid.shape)
        found.append(places)
        strengths.append(strength)
        done = ready
        near = near[max(0, done - REACH - begin) :]
    order = np.argsort(-np.concatenate(strengths), kind="stable")[:POINTS]
    return np.concatenate(found)[order]


def _peaks(
    strength: NDArray[np.float32], numbers: range, span: tuple[int, int], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Extrema among some slices: where on the grid, and how strong.

    Args:
        strength: Of these slices and those next to them.
        numbers: Places of the slices on the grid.
        span: Half-open range of the slices that are wanted.
        shape: Of the grid.
    """
    edges = [min(MARGIN, (n - 1) // 4) for n in shape]  # thin scans would keep nothing else
    inside = np.zeros(strength.shape, dtype=bool)
    first, last = max(edges[0] - numbers[0], span[0]), min(shape[0] - edges[0] - numbers[0], span[1])
    rows, columns = (slice(edge, n - edge) for edge, n in zip(edges[1:], shape[1:], strict=True))
    inside[max(0, first) : max(0, last), rows, columns] = True
    reach = [REACH if n > 1 else 0 for n in shape]
    peaks = (maximum(strength, reach) == strength) & inside & (strength > 0)
    return np.argwhere(peaks) + np.array([numbers[0], 0, 0]), strength[peaks]


def _directions() -> NDArray[np.float64]:
    """(64, 3) nearly even directions (golden spiral)."""
    number = np.arange(64) + 0.5
    z, turn = 1 - 2 * number / 64, np.pi * (1 + 5**0.5) * number
    return np.stack([z, np.sqrt(1 - z**2) * np.sin(turn), np.sqrt(1 - z**2) * np.cos(turn)], axis=1)


def _around(grid: _Grid, points: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, radius, direction) smooth values on the spheres around each point."""
    offsets = np.asarray(RADII)[:, None, None] * _directions()  # (radius, direction, axis)
    if len(points) == 0:
        return np.empty((0, *offsets.shape[:2]), dtype=np.float32)
    out = np.empty((len(points), *offsets.shape[:2]), dtype=np.float32)
    order, reach, at = np.argsort(points[:, 0], kind="stable"), int(max(RADII)) + 1, 0
    heights = points[order, 0]
    window, low = np.empty((0, *grid.shape[1:]), dtype=np.float32), 0
    for start, smooth in grid.smooth():
        window = np.concatenate([window, smooth]) if len(window) else smooth
        end = start + len(smooth)
        last = len(points) if end == grid.shape[0] else int(np.searchsorted(heights, end - reach))
        if last > at:
            some = order[at:last]
            where = points[some][:, None, None, :] + offsets - [low, 0, 0]  # exact, so the window does not matter
            out[some] = ndimage.map_coordinates(window, np.moveaxis(where, -1, 0), order=1, mode="nearest")
        if last == len(points):
            break
        at, first = last, min(end, max(0, int(heights[last]) - reach))
        window, low = window[max(0, first - low) :], max(low, first)
    return out


def _spheres(found: NDArray[np.float32]) -> NDArray[np.int8]:
    """Mean, spread, lowest and highest value on each sphere, in standard deviations of all of them.

    Args:
        found: As from `_around`.
    """
    if len(found) == 0:
        return np.zeros((0, SIZE), dtype=np.int8)
    flat = found.reshape(len(found), -1)
    mean, spread = flat.mean(axis=1)[:, None], flat.std(axis=1)[:, None] + 1e-6
    parts = [found.mean(axis=2) - mean, found.std(axis=2), found.min(axis=2) - mean, found.max(axis=2) - mean]
    numbers = np.concatenate([part / spread for part in parts], axis=1)
    return np.clip(np.rint(numbers * STEPS), -127, 127).astype(np.int8)
