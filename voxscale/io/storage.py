"""The smallest number type that gives back every value of a scan, and scans as they come from a file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxscale.volume import Affine, Modality, Volume, check_affine, to_canonical

INTEGERS = tuple(np.dtype(name) for name in ("uint8", "int8", "int16", "uint16", "int32", "uint32"))
"""Stored integer types, smallest first."""

SAMPLE = 20_000
"""Voxels looked at before the whole array is tried."""

MAX_STEPS = 65_536
"""Most steps of a lattice between the lowest and the highest value."""

CT_FAT = -50.0
"""A scan with one voxel in a hundred at or below this many units is taken for CT: fat is near -100 HU, air at -1000."""


def smallest_integer(low: float, high: float) -> np.dtype[Any] | None:
    """The smallest stored integer type that holds both ends, or None."""
    return next((kind for kind in INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), None)


Scale = float | NDArray[np.float64]
"""One number for all voxels, or one for each."""


def exact_storage(array: NDArray[Any], slope: Scale = 1.0, intercept: Scale = 0.0) -> tuple[NDArray[Any], float, float]:
    """Store values as the smallest integers that give them back exactly, else as float32.

    Exact means that `Volume.values()` of the result equals the input's values
    in float32. Whole numbers kept as floats (such as HU) become integers, and
    so do values on a lattice `a + k * b` (such as scaled bytes saved as floats).
    NaN and infinity survive, as float32.

    Args:
        array: Integers or floats of any shape.
        slope: Values per step of `array`; where slices differ, an array of its shape (a view of few numbers will do).
        intercept: Value of a zero in `array`, of the same kind as `slope`.

    Returns:
        The stored array, its slope and its intercept.
    """
    if array.dtype.kind in "iu" and not isinstance(slope, np.ndarray) and not isinstance(intercept, np.ndarray):
        kind = smallest_integer(int(array.min()), int(array.max()))
        if kind is not None:
            return array.astype(kind, copy=False), slope, intercept
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = _Scaled(array, slope, intercept)
        if all(np.isfinite(values).all() for values in scaled):
            few = scaled.sample()
            for step, start in _scalings(few):
                if _fit((few,), step, start) and (kind := _fit(scaled, step, start)):
                    stored = np.empty(array.shape, dtype=kind)
                    for values, steps in zip(scaled, _blocks(stored), strict=True):
                        steps[...] = np.rint((values - start) / step)
                    return stored, step, start
        out = np.empty(array.shape, dtype=np.float32)
        for values, part in zip(scaled, _blocks(out), strict=True):
            part[...] = values
    return out, 1.0, 0.0


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Values of an array, some at a time, as float64 of all of them would be several times as large."""

    array: NDArray[Any]
    slope: Scale
    intercept: Scale

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        parts = _blocks(self.array)
        slopes, starts = (
            _blocks(each) if isinstance(each, np.ndarray) else [each] * len(parts)
            for each in (self.slope, self.intercept)
        )
        return map(_values, parts, slopes, starts)

    def sample(self) -> NDArray[np.float64]:
        """Every so many-th value."""
        every = slice(None, None, max(1, self.array.size // SAMPLE))
        slope, start = (
            each.flat[every] if isinstance(each, np.ndarray) else each for each in (self.slope, self.intercept)
        )
        return _values(self.array.flat[every], slope, start)  # reshaping may copy all of it


def _blocks(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Views of the array along its first axis that is longer than 1, small enough for float64 copies."""
    axis = next((axis for axis, n in enumerate(array.shape) if n > 1), 0)
    if array.ndim == 4 and axis == 0:  # colours
        return [part for channel in range(len(array)) for part in _blocks(array[channel : channel + 1])]
    return np.array_split(array, min(array.shape[axis], max(1, array.size >> 17)), axis=axis)


def _values(array: NDArray[Any], slope: Scale, intercept: Scale) -> NDArray[np.float64]:
    return array.astype(np.float64) * slope + intercept


def _fit(scaled: Iterable[NDArray[np.float64]], step: float, start: float) -> np.dtype[Any] | None:
    """The type of integers k for which `start + k * step` equals every value in float32, if there is one."""
    low, high = np.inf, -np.inf
    for values in scaled:
        counts = np.rint((values - start) / step)
        if not np.array_equal((counts * step + start).astype(np.float32), values.astype(np.float32)):
            return None
        low, high = min(low, float(counts.min())), max(high, float(counts.max()))
    return smallest_integer(low, high)


def _scalings(sample: NDArray[np.float64]) -> Iterator[tuple[float, float]]:
    """Steps and starts worth trying: whole numbers first, then a lattice through the sample."""
    yield 1.0, 0.0
    levels = np.unique(sample)
    if len(levels) < 2:
        return
    offsets = levels - levels[0]
    step = float(np.diff(levels).min())
    if offsets[-1] > MAX_STEPS * step or step < np.finfo(np.float32).tiny:
        return
    # A gap between two float32 values is only roughly the step; each longer
    # span that is still counted without doubt tells it more precisely.
    reach = 4.0
    while True:
        last = float(offsets[offsets <= reach * step][-1])
        step = last / round(last / step) if last > 0 else step
        if last == offsets[-1]:
            break
        reach *= 2
    single = np.float32(step)
    below, above = np.nextafter(single, np.float32(0)), np.nextafter(single, np.float32(np.inf))
    for candidate in (step, float(single), float(below), float(above)):
        through_zero = abs(levels[0] - round(levels[0] / candidate) * candidate) < 1e-3 * candidate
        yield candidate, 0.0 if through_zero else float(levels[0])


@dataclass(frozen=True, slots=True)
class Raw:
    """A grid of numbers as read from a file, oriented as `Volume`, before its modality is known.

    Attributes:
        voxels: (z, y, x), or (3, 1, y, x) for a colour image, in the stored number type.
        affine: 4x4, see `Volume`.
        slope: Values per stored step.
        intercept: Value of a stored zero.
    """

    voxels: NDArray[Any]
    affine: Affine
    slope: float
    intercept: float

    def values(self) -> NDArray[np.float64]:
        """The values, in the shape of `voxels`."""
        return self.voxels.astype(np.float64) * self.slope + self.intercept

    def guess_modality(self) -> Modality:
        """Tell CT from MR by the lowest values: fat and air are far below 0 HU, MR magnitudes are not negative.

        A CT cropped to an organ, without air or fat, looks like MR; a phase
        or subtraction image of MR may look like CT. Declare the modality
        where such scans occur. A 2D image is neither.
        """
        if self.voxels.shape[-3] == 1:
            return "OT"
        low = np.nanpercentile(self.voxels.reshape(-1)[:: max(1, self.voxels.size // 1_000_000)], 1)
        return "CT" if low * self.slope + self.intercept <= CT_FAT else "MR"

    def volume(self, modality: Modality | None) -> Volume:
        """The scan as a `Volume`; None guesses the modality from the values."""
        return Volume(self.voxels, self.affine, modality or self.guess_modality(), self.slope, self.intercept)


def make_raw(array: NDArray[Any], affine: Affine, slope: Scale = 1.0, intercept: Scale = 0.0) -> Raw:
    """Bring a decoded array into canonical orientation and its smallest exact number type.

    Args:
        array: (k, j, i) integers or floats; (3, 1, j, i) for colour, which is not reoriented.
        affine: 4x4, maps (k, j, i, 1) to (S, A, R, 1) in mm.
        slope: Values per step of `array`; where slices differ, (k, 1, 1).
        intercept: Value of a zero in `array`, of the same kind as `slope`.

    Raises:
        GeometryError: With reason `bad_affine` or `sheared`.
    """
    check_affine(affine)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    turned, moved = (native, affine) if native.ndim == 4 else to_canonical(native, affine)
    slope, intercept = (
        to_canonical(np.broadcast_to(each, native.shape), affine)[0] if isinstance(each, np.ndarray) else each
        for each in (slope, intercept)
    )
    stored, step, start = exact_storage(turned, slope, intercept)
    return Raw(np.ascontiguousarray(stored), moved, step, start)
