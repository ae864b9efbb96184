"""A term against collapse: every feature must vary."""

from jaxtyping import Float
from torch import Tensor


def variance_loss(features: Float[Tensor, "n f"], least: float = 1.0, eps: float = 1e-4) -> Float[Tensor, ""]:
    """Mean of what each feature's deviation lacks of `least` (VICReg, Bardes et al. 2022, Eq. 1)."""
    return (least - (features.float().var(dim=0) + eps).sqrt()).relu().mean()
