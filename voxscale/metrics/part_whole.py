"""Whether embeddings compose, decompose, interpolate and tell places of the body apart.

Properties and controls after Adam-v2 (Hosseinzadeh Taher et al., CVPR 2024), point matching after
SAM (Yan et al., IEEE TMI 41, 2022). A plain cosine rewards embeddings that all share a direction:
whole and parts of an untrained network agree to 0.93, with those of another image to 0.91. So
vectors are compared after their common mean is taken away, and every number comes with a control.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from voxscale.errors import DataError


@dataclass(frozen=True, slots=True)
class Gap:
    """Mean cosine of vectors that belong together, beside a control.

    Attributes:
        own: Of what belongs together.
        other: Of the control; NaN if there is none.
    """

    own: float
    other: float

    @property
    def gap(self) -> float:
        """What belonging together adds."""
        return self.own - self.other


@dataclass(frozen=True, slots=True)
class Top1:
    """How often a predicted part is nearest to the true one.

    Attributes:
        slots: Share found among the parts of the same whole.
        slots_chance: The same by guessing.
        scans: Share found among the parts in the same slot of all scans.
        scans_chance: The same by guessing.
        count: Parts that were looked for.
    """

    slots: float
    slots_chance: float
    scans: float
    scans_chance: float
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """How far from the truth landmarks of one scan are found in another.

    Attributes:
        mm: (l,) distance of the best match from the true place.
        chance: (l,) mean distance of all places from the true place.
        floor: (l,) distance of the place nearest to the true one: no match can be better.
    """

    mm: Float[Tensor, " l"]
    chance: Float[Tensor, " l"]
    floor: Float[Tensor, " l"]


def mean_of_parts(parts: Float[Tensor, "n p d"], counted: Bool[Tensor, "n p"] | None = None) -> Float[Tensor, "n d"]:
    """Mean embedding of the parts of each whole; of those that count, and of all where none does."""
    if counted is None:
        return parts.mean(dim=1)
    weights = torch.where(counted.any(dim=1, keepdim=True), counted, True).to(parts).unsqueeze(2)
    return (parts * weights).sum(dim=1) / weights.sum(dim=1)


def compose_gap(
    whole: Float[Tensor, "n d"], composed: Float[Tensor, "n d"], scans: Integer[Tensor, " n"] | None = None
) -> Gap:
    """Does a whole resemble what its own parts make up, more than what another scan's parts do?

    Args:
        whole: Embedding of each whole.
        composed: The same made of its parts: their mean (`mean_of_parts`) or what a head predicts.
        scans: Scan of each whole, of several wholes per scan; all differ by default.

    Raises:
        DataError: If there are fewer than 3 wholes (of two, centred vectors are opposite), or shapes differ.
    """
    _same("composed", composed, whole)
    alike = _centred(whole) @ _centred(composed).T
    other = alike[_different(scans, len(whole), whole.device)]
    return Gap(own=alike.diagonal().mean().item(), other=other.mean().item())


def decompose_top1(
    predicted: Float[Tensor, "n p d"],
    true: Float[Tensor, "n p d"],
    scans: Integer[Tensor, " n"] | None = None,
    counted: Bool[Tensor, "n p"] | None = None,
) -> Top1:
    """Is the part predicted for a slot nearest to the true part there?

    Args:
        predicted: Embedding of each part as told from its whole.
        true: Embedding of each part itself.
        scans: Scan of each whole; parts in the same slot of the same scan do not compete. All differ by default.
        counted: Parts that are looked for and compete: those that are not air. All by default.

    Raises:
        DataError: If shapes differ, there are fewer than 3 wholes, or no part counts.
    """
    _same("predicted", predicted, true)
    n, p, _ = true.shape
    counts = torch.ones(n, p, dtype=torch.bool, device=true.device) if counted is None else counted
    if not counts.any():
        raise DataError("counted must mark at least one part, not none", "empty")
    guess, truth = (_centred(part.flatten(0, 1), counts.flatten()).view(n, p, -1) for part in (predicted, true))
    within = torch.einsum("nid,njd->nij", guess, truth).masked_fill(~counts[:, None], -torch.inf)
    slots = within.argmax(dim=2) == torch.arange(p, device=true.device)
    across = torch.einsum("nid,mid->inm", guess, truth)  # slot, whole that is asked, whole that answers
    here = torch.arange(n, device=true.device)
    rivals = (_different(scans, n, true.device) | (here[:, None] == here)) & counts.T[:, None]
    scan = across.masked_fill(~rivals, -torch.inf).argmax(dim=2) == here
    chances = 1 / counts.sum(dim=1, keepdim=True).expand(n, p).double(), 1 / rivals.sum(dim=2).T.double()
    slots_chance, scans_chance = (chance[counts].mean().item() for chance in chances)
    return Top1(
        slots=slots[counts].double().mean().item(),
        slots_chance=slots_chance,
        scans=scan.T[counts].double().mean().item(),
        scans_chance=scans_chance,
        count=int(counts.sum()),
    )


def interpolation_gap(
    start: Float[Tensor, "n d"],
    end: Float[Tensor, "n d"],
    reached: Float[Tensor, "n d"],
    control: Float[Tensor, "n d"],
    share: float,
) -> Gap:
    """Is the embedding of a place on the way from A to B the same way between theirs?

    The vector `A + share (B - A)` is compared with that of the place itself. With a share
    above 1 the place lies beyond B: extrapolation.

    Args:
        start: Embedding at A.
        end: At B.
        reached: At the place that lies this share of the way from A to B.
        control: At a place as far from A in a direction drawn at random.
        share: Of the way.

    Raises:
        DataError: If shapes differ or there are fewer than 3 segments.
    """
    for name, part in (("end", end), ("reached", reached), ("control", control)):
        _same(name, part, start)
    every = torch.cat([start, end, reached, control]).double()
    _enough(start)
    a, b, c, d = (every - every.mean(dim=0)).split(len(start))
    guess = a + share * (b - a)
    own, other = (F.cosine_similarity(guess, part, dim=1).mean().item() for part in (c, d))
    return Gap(own=own, other=other)


def matching_error(
    queries: Float[Tensor, "l d"],
    features: Float[Tensor, "d z y x"],
    places: Float[Tensor, "k z y x"],
    truth: Float[Tensor, "l k"],
) -> Matching:
    """Find landmarks of one scan in another one by the most alike feature vector.

    Args:
        queries: Feature vector at each landmark in its own scan, see `at_points`.
        features: Dense features of the other scan; of an image z is 1.
        places: Place of each of these vectors in mm.
        truth: Place of each landmark in the other scan in mm.

    Raises:
        DataError: If shapes do not belong together.
    """
    if (
        queries.shape[1] != features.shape[0]
        or features.shape[1:] != places.shape[1:]
        or truth.shape
        != (
            len(queries),
            places.shape[0],
        )
    ):
        shapes = [tuple(part.shape) for part in (queries, features, places, truth)]
        raise DataError(
            f"queries, features, places and truth must have shapes that belong together, not {shapes}", "grid"
        )
    dense, where = features.flatten(1).T.double(), places.flatten(1).T.double()
    centre = dense.mean(dim=0)
    alike = F.normalize(queries.double() - centre, dim=1) @ F.normalize(dense - centre, dim=1).T
    far = torch.cdist(truth.double(), where)
    best = far.gather(1, alike.argmax(dim=1, keepdim=True)).squeeze(1)
    return Matching(mm=best, chance=far.mean(dim=1), floor=far.amin(dim=1))


def at_points(features: Float[Tensor, "d z y x"], points: Float[Tensor, "l 3"]) -> Float[Tensor, "l d"]:
    """Trilinear reading of features at points (z, y, x) given in cells; points outside take the nearest value."""
    sizes = torch.tensor(features.shape[1:], device=features.device, dtype=torch.float32)
    scaled = 2 * (points.to(sizes) + 0.5) / sizes - 1
    grid = scaled.flip(1).view(1, -1, 1, 1, 3)
    read = F.grid_sample(features[None].float(), grid, padding_mode="border", align_corners=False)
    return read[0, :, :, 0, 0].T


def centroids(label: Integer[Tensor, "z y x"], classes: Sequence[int]) -> Float[Tensor, "l 3"]:
    """Centre of gravity of each class in voxels (z, y, x); NaN where a class is absent."""
    return torch.stack([(label == one).nonzero().double().mean(dim=0) for one in classes])


def _centred(vectors: Float[Tensor, "n d"], counted: Bool[Tensor, " n"] | None = None) -> Float[Tensor, "n d"]:
    """Unit vectors from the common mean, in float64."""
    _enough(vectors)
    exact = vectors.double()
    return F.normalize(exact - (exact if counted is None else exact[counted]).mean(dim=0), dim=1)


def _different(scans: Integer[Tensor, " n"] | None, n: int, device: torch.device) -> Bool[Tensor, "n n"]:
    """Which pairs are of two scans."""
    which = torch.arange(n, device=device) if scans is None else scans.to(device)
    if len(which) != n:
        raise DataError(f"scans must name the scan of each of {n} wholes, not of {len(which)}", "grid")
    return which[:, None] != which[None]


def _same(name: str, part: Tensor, like: Tensor) -> None:
    if part.shape != like.shape:
        raise DataError(f"{name} must have shape {tuple(like.shape)}, not {tuple(part.shape)}", "grid")


def _enough(vectors: Tensor) -> None:
    if len(vectors) < 3:
        raise DataError(f"embeddings must be of at least 3, not {len(vectors)}: their mean is taken away", "too_few")
