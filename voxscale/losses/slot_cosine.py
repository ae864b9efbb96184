"""How far predicted embeddings are from true ones, slot by slot."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from voxscale import dist


def slot_cosine(
    predicted: Float[Tensor, "b p d"], target: Float[Tensor, "b p d"], counted: Bool[Tensor, "b p"]
) -> Float[Tensor, ""]:
    """Mean of `2 - 2 cos` over the slots that count, on all ranks together; no gradient goes to the target.

    Each slot is normalised by itself, so 0 can be reached. This is the squared distance of unit
    vectors summed over features; their mean over features, as the released code of Adam-v2 takes it,
    has a d-th of the gradient.

    Args:
        predicted: From the student.
        target: From the teacher.
        counted: Slots that count. If none does on any rank, the loss is 0. A collective call.
    """
    cosines = F.cosine_similarity(predicted.float(), target.detach().float(), dim=2)
    weights = counted.to(cosines)
    # The ranks' losses are averaged, but not all have the same number of slots that count.
    count = dist.mean(weights.sum()).clamp(min=1e-9)
    return ((2 - 2 * cosines) * weights).sum() / count


@torch.no_grad()
def slot_gap(
    predicted: Float[Tensor, "b p d"], target: Float[Tensor, "b p d"], counted: Bool[Tensor, "b p"]
) -> Float[Tensor, ""]:
    """Mean cosine with one's own target, less that with other samples' in the same slot: 0 if nothing is told apart.

    Args:
        predicted: From the student.
        target: From the teacher.
        counted: Slots that count, of both. Where there are no two samples to compare, the gap is 0.
    """
    alike = torch.einsum("bpd,npd->pbn", F.normalize(predicted.float(), dim=2), F.normalize(target.float(), dim=2))
    both = counted.T[:, :, None] & counted.T[:, None, :]
    same = torch.eye(len(predicted), dtype=torch.bool, device=both.device)
    own, other = both & same, both & ~same
    if not other.any():
        return alike.new_zeros(())
    return alike[own].mean() - alike[other].mean()
