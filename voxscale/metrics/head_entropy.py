"""Whether a head with many outputs decides, and, of the mean of what it says, whether it uses them."""

import math

from jaxtyping import Float
from torch import Tensor


def head_entropy(chance: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Entropy of each distribution as a share of the largest, ln k: 0 is one output, 1 is all of them alike.

    A head can collapse in both ways: to no decision (each distribution's entropy is 1) or to one output for all (that
    of their mean is 0).

    Args:
        chance: n distributions over k outputs, 2 or more.
    """
    return -(chance * chance.clamp(min=1e-30).log()).sum(dim=1) / math.log(chance.shape[1])
