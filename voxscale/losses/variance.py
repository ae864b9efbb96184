"""A term against collapse: every feature must vary."""

from jaxtyping import Float
from torch import Tensor

from voxscale.samples import OWN, Samples


def variances(features: Float[Tensor, "n f"], over: Samples = OWN, *, unbiased: bool = True) -> Float[Tensor, " f"]:
    """Variance of each feature, in float32.

    Args:
        features: One row for each thing that has them.
        over: Whose rows they are taken over.
        unbiased: Whether squares are divided by one less than the number of rows.
    """
    x = features.float()
    total, count = over.total(x.detach().sum(dim=0), x.new_full((), len(x)))
    # The mean needs no gradient: differences from it sum to 0.
    (squares,) = over.total((x - total / count).square().sum(dim=0))
    return squares / (count - 1 if unbiased else count)


def variance_loss(
    features: Float[Tensor, "n f"], least: float = 1.0, eps: float = 1e-4, over: Samples = OWN
) -> Float[Tensor, ""]:
    """Mean of what each feature's deviation lacks of `least` (VICReg, Bardes et al. 2022, Eq. 1)."""
    return (least - (variances(features, over) + eps).sqrt()).relu().mean()
