"""Finding scans that are copies of one another, among very many: a vector index proposes, blobs decide."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.descriptor import POINTS, SIZE, Descriptor

if TYPE_CHECKING:
    from usearch.index import Index

PROPOSED = 16
"""Neighbours of each scan that are compared blob by blob."""
EXACT_UP_TO = 2000
"""Up to so many scans neighbours are found by comparing all, and `MORE` of them are proposed."""
MORE = 64
AT_ONCE = 65_536
"""Scans whose neighbours are asked for together."""

ALIKE = 38.0
"""Largest distance of what is around two blobs that may be one; 24 is one standard deviation in one of its numbers."""
TOLERANCE_MM = 4.0
"""Distances between blobs of one scan and its copy agree this well."""
LEAST = 8
"""Fewest blobs that must look and lie alike."""


@dataclass(frozen=True, slots=True)
class Table:
    """Descriptors of n scans; the first two arrays may lie on disk, where a scan's part is read when it is needed.

    Attributes:
        looks: (n, POINTS, SIZE) int8, rows beyond `counts` are 0.
        points: (n, POINTS, 3) float16 in mm.
        counts: (n,) blobs of each scan.
        overall: (n, 3 * SIZE) int8, what the search compares.
    """

    looks: NDArray[np.int8]
    points: NDArray[np.float16]
    counts: NDArray[np.int16]
    overall: NDArray[np.int8]

    def __len__(self) -> int:
        """How many scans."""
        return len(self.counts)


def make_table(descriptors: Iterable[Descriptor], n: int, folder: Path | None = None) -> Table:
    """Gather descriptors.

    Args:
        descriptors: Of n scans.
        n: How many there are.
        folder: Where the large arrays are kept, as files; None keeps them in memory.
    """

    def array(name: str, tail: tuple[int, ...], kind: type[np.generic]) -> NDArray[np.generic]:
        if folder is None or n == 0:
            return np.zeros((n, *tail), dtype=kind)
        return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=(n, *tail))

    table = Table(
        looks=array("looks", (POINTS, SIZE), np.int8),
        points=array("points", (POINTS, 3), np.float16),
        counts=np.zeros(n, dtype=np.int16),
        overall=np.zeros((n, 3 * SIZE), dtype=np.int8),
    )
    for number, each in enumerate(descriptors):
        count = len(each.looks)
        table.looks[number, :count], table.points[number, :count] = each.looks, each.points
        table.counts[number], table.overall[number] = count, each.overall
    return table


@dataclass(frozen=True, slots=True)
class Pair:
    """Two scans that are one.

    Attributes:
        a: Number of the first.
        b: Number of the second.
        score: Blobs that look and lie alike.
    """

    a: int
    b: int
    score: int


def find_pairs(first: Table, second: Table | None = None, least: int = LEAST) -> list[Pair]:
    """Find copies within one set, or of one set in another.

    Args:
        first: The scans asked about.
        second: Where they are looked for; None looks among themselves.
        least: Fewest blobs that must agree.

    Returns:
        Pairs by their numbers, best first.
    """
    among = first if second is None else second
    near = propose(first.overall, among.overall)
    out: list[Pair] = []
    for a, row in enumerate(near):
        some = row[row >= 0]
        if second is None:  # each pair once: a pair proposed from both sides is compared at its smaller number
            some = some[(some > a) | ((some < a) & ~(near[some] == a).any(axis=1))]
        for b, score in zip(some.tolist(), agreements(first, a, among, some, least), strict=True):
            if score >= least:
                out.append(Pair(min(a, b), max(a, b), score) if second is None else Pair(a, b, score))
    return sorted(out, key=lambda pair: (-pair.score, pair.a, pair.b))


def propose(asked: NDArray[np.int8], known: NDArray[np.int8]) -> NDArray[np.int64]:
    """(n, k) numbers of the known vectors nearest to each asked one; -1 where there are fewer."""
    if len(known) <= EXACT_UP_TO:
        out = np.full((len(asked), min(MORE, len(known))), -1, dtype=np.int64)
        wide = known.astype(np.float32)
        for row, vector in zip(out, asked.astype(np.float32), strict=True):
            row[:] = np.argsort(((wide - vector) ** 2).sum(axis=1), kind="stable")[: len(row)]
        return out
    index = build(known)
    out = np.full((len(asked), PROPOSED + 1), -1, dtype=np.int64)  # one more: a scan finds itself
    for start in range(0, len(asked), AT_ONCE):
        found = index.search(asked[start : start + AT_ONCE], PROPOSED + 1)
        for row, keys, count in zip(out[start:], found.keys, found.counts, strict=False):
            row[:count] = keys[:count]
    return out


def build(vectors: NDArray[np.int8]) -> "Index":
    """A vector index (hierarchical navigable small worlds) of (n, 3 * SIZE) vectors, 8 bits a number.

    It is asked with 8-bit vectors too: floats would be taken for numbers between -1 and 1.
    """
    from usearch.index import Index  # the other steps do without it

    index = Index(ndim=vectors.shape[1], metric="l2sq", dtype="i8", connectivity=16, expansion_add=64)
    index.add(np.arange(len(vectors)), vectors)
    return index


def agreements(one: Table, a: int, others: Table, numbers: NDArray[np.int64], least: int = LEAST) -> list[int]:
    """How many blobs of one scan and each of some others look alike and lie alike; 0 where it is below `least`.

    Blobs are paired where each is the other's best; of the pairs the largest
    group around one of them is taken whose distances agree.
    """
    out = [0] * len(numbers)
    mine = int(one.counts[a])
    if mine < least or len(numbers) == 0:
        return out
    looks = one.looks[a, :mine].astype(np.float32)
    theirs = others.looks[numbers].astype(np.float32)
    squares = (theirs**2).sum(axis=2)
    squares[np.arange(POINTS) >= others.counts[numbers, None]] = np.inf  # rows that hold no blob
    # Exact in float32: whole numbers below 2^24.
    apart = (looks**2).sum(axis=1)[None, :, None] + squares[:, None] - 2 * (looks @ theirs.transpose(0, 2, 1))
    best, back = apart.argmin(axis=2), apart.argmin(axis=1)
    nearest = np.take_along_axis(apart, best[:, :, None], axis=2)[:, :, 0]
    paired = (np.take_along_axis(back, best, axis=1) == np.arange(mine)) & (nearest < ALIKE**2)
    for place in np.flatnonzero(paired.sum(axis=1) >= least):
        rows = np.flatnonzero(paired[place])
        p = one.points[a][rows].astype(np.float32)
        q = others.points[numbers[place]][best[place, rows]].astype(np.float32)
        score = _rigid(p, q)
        out[place] = score if score >= least else 0
    return out


def _rigid(p: NDArray[np.float32], q: NDArray[np.float32]) -> int:
    """Size of the largest group of points around one of them whose mutual distances are the same in both sets."""
    far = np.linalg.norm(p[:, None] - p[None], axis=2)
    same = np.abs(far - np.linalg.norm(q[:, None] - q[None], axis=2)) < TOLERANCE_MM
    group = same[int(same.sum(axis=1).argmax())]
    return int((same[np.ix_(group, group)].mean(axis=1) >= 0.6).sum())


def agreement(one: Descriptor, other: Descriptor, least: int = LEAST) -> int:
    """`agreements` of two scans."""
    both = make_table([one, other], 2)
    return agreements(both, 0, both, np.array([1]), least)[0]
