"""Finding scans that are copies of one another, among very many: a vector index proposes, blobs decide."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index

from data_prep.descriptor import RECIPE, SIZE, Descriptor

PROPOSED = 24
"""Neighbours of each scan that are compared blob by blob."""
EXACT_UP_TO = 2000
"""So few scans are compared with one another without an index."""

ALIKE = 38.0
"""Largest distance of what is around two blobs that may be one; 24 is one standard deviation in one of its numbers."""
TOLERANCE_MM = 4.0
"""Distances between blobs of one scan and its copy agree this well."""
LEAST = 8
"""Fewest blobs that must look and lie alike."""

__all__ = ["RECIPE", "Pair", "agreement", "find_pairs"]


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


def find_pairs(
    first: Sequence[Descriptor], second: Sequence[Descriptor] | None = None, least: int = LEAST
) -> list[Pair]:
    """Find copies within one set, or of one set in another.

    Args:
        first: The scans asked about.
        second: Where they are looked for; None looks among themselves.
        least: Fewest blobs that must agree.

    Returns:
        Pairs by their numbers, best first.
    """
    among = first if second is None else second
    out: dict[tuple[int, int], Pair] = {}
    for a, proposed in enumerate(_propose(first, among)):
        for b in proposed:
            if second is None and a == b:
                continue
            place = (min(a, b), max(a, b)) if second is None else (a, b)
            if place not in out and (score := agreement(first[a], among[b])) >= least:
                out[place] = Pair(*place, score)
    return sorted(out.values(), key=lambda pair: (-pair.score, pair.a, pair.b))


def _propose(first: Sequence[Descriptor], among: Sequence[Descriptor]) -> Iterator[list[int]]:
    """For each scan the numbers of those worth comparing."""
    if len(among) <= EXACT_UP_TO:
        known = np.stack([each.overall for each in among]) if among else np.zeros((0, 3 * SIZE), np.float32)
        for each in first:
            apart = ((known - each.overall) ** 2).sum(axis=1)
            yield np.argsort(apart, kind="stable")[: 4 * PROPOSED].tolist()
        return
    index = build(np.stack([each.overall for each in among]))
    for each in first:
        yield [int(key) for key in index.search(each.overall.astype(np.int8), PROPOSED).keys]


def build(vectors: NDArray[np.float32]) -> Index:
    """A vector index (hierarchical navigable small worlds) of (n, 3 * SIZE) vectors, 8 bits a number.

    It is asked with 8-bit vectors too: floats would be taken for numbers between -1 and 1.
    """
    index = Index(ndim=vectors.shape[1], metric="l2sq", dtype="i8", connectivity=16, expansion_add=64)
    index.add(np.arange(len(vectors)), vectors.astype(np.int8))
    return index


def agreement(one: Descriptor, other: Descriptor) -> int:
    """How many blobs of two scans look alike and lie alike.

    Blobs are paired where each is the other's best; of the pairs the largest
    group around one of them is taken whose distances agree.
    """
    if min(len(one.looks), len(other.looks)) < LEAST:
        return 0
    a, b = one.looks.astype(np.float32), other.looks.astype(np.float32)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * (a @ b.T)  # exact: whole numbers below 2^24
    apart = np.sqrt(np.maximum(squares, 0))
    best, back = apart.argmin(axis=1), apart.argmin(axis=0)
    rows = np.flatnonzero((back[best] == np.arange(len(a))) & (apart.min(axis=1) < ALIKE))
    if len(rows) < LEAST:
        return 0
    p, q = one.points[rows].astype(np.float32), other.points[best[rows]].astype(np.float32)
    far = np.linalg.norm(p[:, None] - p[None], axis=2)
    same = np.abs(far - np.linalg.norm(q[:, None] - q[None], axis=2)) < TOLERANCE_MM
    group = same[int(same.sum(axis=1).argmax())]
    inner = same[np.ix_(group, group)]
    return int((inner.mean(axis=1) >= 0.6).sum())
