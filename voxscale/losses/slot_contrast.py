"""Whether predicted embeddings are those of their own sample, and not those of others."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voxscale.direction import direction
from voxscale.samples import OWN, Samples


def slot_contrast(
    predicted: Float[Tensor, "b p d"],
    target: Float[Tensor, "b p d"],
    counted: Bool[Tensor, "b p"],
    temperature: float,
    over: Samples = OWN,
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each sample's own target among those of all samples in the same slot.

    One way, as no gradient goes to targets (van den Oord et al. 2018, Eq. 4). Guessing costs the logarithm of the
    number of samples that count.

    Args:
        predicted: From the student.
        target: From the teacher.
        counted: Slots that count and compete.
        temperature: What cosines are divided by.
        over: Whose samples compete; ranks must have equally many.
    """
    every = over.rows(direction(target.detach().float(), 2))
    rivals = over.rows(counted)
    logits = torch.einsum("bpd,npd->bpn", direction(predicted.float(), 2), every) / temperature
    here = over.rank * len(predicted) + torch.arange(len(predicted), device=predicted.device)
    # A slot that does not count may not compete, but its own loss must be finite to be multiplied by 0.
    allowed = rivals.T[None] | (here[:, None, None] == torch.arange(len(every), device=predicted.device))
    logs = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=2)
    own = logs.gather(2, here[:, None, None].expand(-1, logs.shape[1], 1))[:, :, 0]
    weights = counted.to(own)
    total, count = over.total((own * weights).sum(), weights.sum())
    return -total / count.clamp(min=1e-9)
