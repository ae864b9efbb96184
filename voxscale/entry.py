"""`Entry`: what the store knows of one accepted scan, so that nobody needs to open it to choose."""

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxscale.config import Hash, to_dict
from voxscale.volume import Modality

CELL = 32
"""Voxels along an axis of an occupancy cell, unless that made more than `MOST_CELLS` cells."""
MOST_CELLS = 16
"""Most occupancy cells along an axis."""

Face = Literal["none", "defaced", "allowed", "unchecked"]
Text = Literal["none", "allowed", "unchecked"]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How much of each cell of a coarse grid is body.

    Attributes:
        cell: Voxels along z, y, x of a cell; the last cell of an axis may be cut by the scan's end.
        grid: Cells along z, y, x.
        shares: Share of body of each cell in 255ths, rounded up so that 0 means none at all; zlib, then base64.
    """

    cell: tuple[int, int, int]
    grid: tuple[int, int, int]
    shares: str

    @classmethod
    def measure(cls, body: NDArray[np.bool_]) -> "Occupancy":
        """Measure a body mask, (z, y, x)."""
        cells = [max(CELL, -(-n // MOST_CELLS)) for n in body.shape]
        # Row of cells by row of cells: numpy would make the whole mask an array of wider numbers.
        slabs = [body[start : start + cells[0]] for start in range(0, len(body), cells[0])]
        rows = range(0, body.shape[1], cells[1])
        counts = np.stack([np.stack([_columns(slab[:, row : row + cells[1]]) for row in rows]) for slab in slabs])
        volume = np.ones((1, 1, 1), dtype=np.int32)
        for axis, (n, cell) in enumerate(zip(body.shape, cells, strict=True)):
            starts = np.arange(0, n, cell)
            counts = np.add.reduceat(counts, starts, axis=axis, dtype=np.int32) if axis == 2 else counts
            lengths = np.diff(np.append(starts, n)).astype(np.int32)
            volume = volume * lengths.reshape([-1 if number == axis else 1 for number in range(3)])
        shares = np.ceil(255 * counts / volume).astype(np.uint8)
        return cls._pack((cells[0], cells[1], cells[2]), shares)

    @classmethod
    def _pack(cls, cell: tuple[int, int, int], shares: NDArray[np.uint8]) -> "Occupancy":
        packed = base64.b64encode(zlib.compress(shares.tobytes(), 9)).decode()
        z, y, x = shares.shape
        return cls(cell, (z, y, x), packed)

    def part(self, cells: tuple[slice, slice, slice]) -> "Occupancy":
        """Some of the cells, the same shares."""
        return self._pack(self.cell, np.ascontiguousarray(self._shares()[cells]))

    def _shares(self) -> NDArray[np.uint8]:
        """Share of body of each cell in 255ths, shape `grid`."""
        flat = np.frombuffer(zlib.decompress(base64.b64decode(self.shares)), dtype=np.uint8)
        return flat.reshape(self.grid)

    def decode(self) -> NDArray[np.float32]:
        """Share of body of each cell, 0 to 1, shape `grid`."""
        return self._shares().astype(np.float32) / np.float32(255)

    def most(self, box: tuple[slice, slice, slice]) -> float:
        """Largest share of body among the cells that a box of voxels touches; 0 means the box is air."""
        where = tuple(slice(s.start // c, -(-s.stop // c)) for s, c in zip(box, self.cell, strict=True))
        return float(self.decode()[where].max())


def _columns(part: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(x,) how many are true in each column of (z, y, x)."""
    return np.add.reduce(np.add.reduce(part, axis=0, dtype=np.int32), axis=0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Privacy:
    """Verdicts of the privacy gate on one scan.

    Attributes:
        face: `none` found, `defaced`, or left in because the settings `allowed` it; `unchecked` without the gate.
        text: `none` found in the pixels, or left in because the settings `allowed` it; `unchecked` without the gate.
        ocr: Whether a text recogniser had its say.
        removed: Voxels that were blanked; their mask is kept beside the scan.
    """

    face: Face = "unchecked"
    text: Text = "unchecked"
    ocr: bool = False
    removed: int = 0

    @property
    def passed(self) -> bool:
        """Whether the scan went through the gate."""
        return "unchecked" not in (self.face, self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the ledger, the index and the scan's own attributes tell about an accepted scan.

    Attributes:
        subject: Keyed hash of the patient.
        dataset: Name of the data set that the user gave at ingest: letters, digits, - and _.
        study: Keyed hash of the study, if the input names one.
        series: Keyed hash of the series, if the input names one; volumes of one series share it.
        day: Day of the study, counted so that only differences within a subject mean anything.
        modality: See `voxscale.volume.Modality`.
        modality_from: What the modality was learnt from: `header`, `config` or `values`.
        shape: Voxels along z, y, x.
        channels: Numbers per voxel: 1, or 3 for colour.
        spacing: mm along z, y, x.
        spacing_known: False where the input states no voxel size and 1 mm was taken.
        affine: 4x4, see `voxscale.volume.Volume`.
        dtype: Stored number type.
        slope: Values per stored step.
        intercept: Value of a stored zero.
        percentiles: Value at each of `voxscale.contract.PERCENTILES`, keyed by `str(percentile)`.
        histogram: Share of voxels in 64 equal bins from the first to the last of those percentiles.
        body_mean: Mean value of the body.
        body_std: Standard deviation of the body's values.
        foreground_box: Half-open index ranges along z, y, x around the body.
        foreground: Fraction of voxels in the foreground.
        occupancy: Where the body is, coarsely.
        padding: Value that marks voxels outside the scan, if there are such.
        padded: Fraction of voxels with that value.
        label: Voxels of each class, keyed by `str(class)`; None without a label.
        image_class: Class of the whole image, if it has one.
        technique: Whitelisted header values, see `voxscale.io.loaded.Technique`.
        privacy: Verdicts of the privacy gate.
        part: Which volume of its input this is.
        parts: Volumes in its input.
        bytes: Size of all chunk files, which a reader checks.
        ingest: Hash of the settings of all steps that made it, see `data_prep.steps`; None if it was taken in by a
            version that did not keep it.
    """

    subject: str
    dataset: str = "main"
    study: str | None = None
    series: str | None = None
    day: int | None = None
    modality: Modality
    modality_from: str
    shape: tuple[int, int, int]
    channels: int = 1
    spacing: tuple[float, float, float]
    spacing_known: bool = True
    affine: list[list[float]]
    dtype: str
    slope: float
    intercept: float
    percentiles: dict[str, float]
    histogram: tuple[float, ...] = ()
    body_mean: float = 0.0
    body_std: float = 0.0
    foreground_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    foreground: float
    occupancy: Occupancy | None = None
    padding: float | None = None
    padded: float = 0.0
    label: dict[str, int] | None
    image_class: int | None = None
    technique: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    privacy: Privacy = Privacy()
    part: int = 0
    parts: int = 1
    bytes: int = 0
    ingest: Hash | None = None

    @property
    def planar(self) -> bool:
        """Whether it is a 2D image."""
        return self.shape[0] == 1


def contents(entry: Entry) -> dict[str, Any]:
    """A scan as plain values, whichever settings made it so: by these a run knows the scans that it began with."""
    return {name: value for name, value in to_dict(entry).items() if name != "ingest"}


def group_of(dataset: str, modality: str, body_part: str | None) -> str:
    """Name of what is weighted together: data set, modality and body region."""
    return f"{dataset}/{modality}/{body_part or 'unknown'}"
