"""Self-distillation: the student's distribution over prototypes follows the teacher's centred, sharper one."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from voxscale.samples import OWN, Samples


def teacher_probabilities(
    logits: Float[Tensor, "b k"], centre: Float[Tensor, " k"], temperature: float
) -> Float[Tensor, "b k"]:
    """What the student is to say: `softmax((logits - centre) / temperature)`, without gradient."""
    return ((logits.detach().float() - centre) / temperature).softmax(dim=1)


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "b k"], temperature: float, rounds: int = 3, over: Samples = OWN
) -> Float[Tensor, "b k"]:
    """What the student is to say: `softmax(logits / temperature)`, changed so that all samples together use all alike.

    Sinkhorn's alternation over prototypes and samples (Caron et al. 2020, SwAV, section 3.1). It knows the batch alone,
    so it does not lag behind the teacher as a running centre does, and of few samples each gets the prototypes that it
    likes more than the others do.

    Args:
        logits: Of the teacher.
        temperature: Its temperature.
        rounds: Of the alternation; the last act is on samples, so each is a distribution.
        over: Whose samples use all prototypes alike.
    """
    shares = (logits.double() / temperature).softmax(dim=1)
    for _ in range(rounds):
        (used,) = over.total(shares.sum(dim=0))
        shares = shares / used.clamp(min=1e-300)
        shares = shares / shares.sum(dim=1, keepdim=True)
    return shares.float()


def dino_loss(student: Float[Tensor, "v b k"], teacher: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, ""]:
    """Mean cross-entropy of every view of the student with the teacher (Caron et al. 2021, DINO).

    Args:
        student: Logits of each view of each sample.
        teacher: Probabilities, see `teacher_probabilities`.
        temperature: Of the student.
    """
    return -(teacher * (student.float() / temperature).log_softmax(dim=2)).sum(dim=2).mean()


@torch.no_grad()
def entropies(probabilities: Float[Tensor, "b k"], over: Samples = OWN) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Signs of collapse, both as a share of the greatest entropy, ln k.

    Args:
        probabilities: Of each sample.
        over: Whose samples are the batch; ranks must have equally many.

    Returns:
        Mean entropy of each sample's distribution (1: the teacher says nothing) and entropy of the batch's mean
        distribution (0: it says the same of every sample).
    """

    def entropy(p: Tensor) -> Tensor:
        return torch.special.entr(p).sum(dim=-1) / math.log(p.shape[-1])

    each, mean = over.total(entropy(probabilities).mean(), probabilities.mean(dim=0))
    return each / over.ranks, entropy(mean / over.ranks)


def teacher_temperature(start: float, end: float, warmup: float, progress: float) -> float:
    """Temperature of the teacher: linear over the first part of the run, then constant (Caron et al. 2021, DINO).

    Args:
        start: At the beginning.
        end: From `warmup` on.
        warmup: Share of the run.
        progress: Share of the run that is done.
    """
    return end if progress >= warmup else start + (end - start) * progress / warmup
