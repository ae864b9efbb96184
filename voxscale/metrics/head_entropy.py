"""Whether a head with many outputs uses them, and whether it decides."""

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class HeadEntropy(NamedTuple):
    """Entropies of a head's probabilities as shares of the largest possible one.

    Attributes:
        each: Mean over samples of each sample's entropy: 0 is sure, 1 is undecided.
        usage: Entropy of the mean over samples: 0 is one output for all samples, 1 is all outputs alike.
    """

    each: float
    usage: float


def head_entropy(logits: Float[Tensor, "n k"], temperature: float = 1.0) -> HeadEntropy:
    """Both ways in which a head can collapse: to one output (`usage` 0) or to none (`each` 1).

    Args:
        logits: Scores of k outputs, 2 or more.
        temperature: What they are divided by before the softmax.
    """
    logs = (logits.double() / temperature).log_softmax(dim=1)
    most = math.log(logits.shape[1])
    each = -(logs.exp() * logs).sum(dim=1).mean()
    mean = logs.exp().mean(dim=0)
    usage = -(mean * mean.clamp(min=1e-300).log()).sum()
    return HeadEntropy(float(each) / most, float(usage) / most)
