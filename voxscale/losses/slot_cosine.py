"""How far predicted embeddings are from true ones, slot by slot."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from voxscale.direction import direction
from voxscale.samples import OWN, Samples


def slot_cosine(
    predicted: Float[Tensor, "b p d"], target: Float[Tensor, "b p d"], counted: Bool[Tensor, "b p"], over: Samples = OWN
) -> Float[Tensor, ""]:
    """Mean of `2 - 2 cos` over the slots that count; no gradient goes to the target.

    Each slot is normalised by itself, so 0 can be reached. This is the squared distance of unit
    vectors summed over features; their mean over features, as the released code of Adam-v2 takes it,
    has a d-th of the gradient.

    Args:
        predicted: From the student.
        target: From the teacher.
        counted: Slots that count. If none does, the loss is 0.
        over: Whose samples the mean is over.
    """
    cosines = (direction(predicted.float(), 2) * direction(target.detach().float(), 2)).sum(dim=2)
    weights = counted.to(cosines)
    total, count = over.total(((2 - 2 * cosines) * weights).sum(), weights.sum())
    return total / count.clamp(min=1e-9)


@torch.no_grad()
def slot_gap(
    predicted: Float[Tensor, "b p d"], target: Float[Tensor, "b p d"], counted: Bool[Tensor, "b p"], over: Samples = OWN
) -> Float[Tensor, ""]:
    """Mean cosine with one's own target, less that with other samples' in the same slot: 0 if nothing is told apart.

    Args:
        predicted: From the student.
        target: From the teacher.
        counted: Slots that count, of both. Where there are no two samples to compare, the gap is 0.
        over: Whose samples are compared.
    """
    weights = counted.double()
    guess, truth = (F.normalize(part.double(), dim=2) * weights[:, :, None] for part in (predicted, target))
    # Cosines of all pairs of a slot sum to the product of the sums, so no rank needs what others hold.
    own, count, asked, there = over.total((guess * truth).sum(), weights.sum(0), guess.sum(0), truth.sum(0))
    pairs = (count * (count - 1)).sum()
    gap = own / count.sum().clamp(min=1) - ((asked * there).sum() - own) / pairs.clamp(min=1)
    return torch.where(pairs > 0, gap, 0.0).float()
