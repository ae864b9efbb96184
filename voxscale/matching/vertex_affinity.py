"""How much nodes of two graphs are alike."""

from jaxtyping import Float
from torch import Tensor

from voxscale.direction import direction
from voxscale.errors import DataError


def cosines(source: Float[Tensor, "b n f"], target: Float[Tensor, "b m f"]) -> Float[Tensor, "b n m"]:
    """Cosine of each pair, in float32; a vector of zeros has cosine 0 with all."""
    return direction(source.float(), 2) @ direction(target.float(), 2).mT


def vertex_affinity(
    source: Float[Tensor, "b n f"],
    target: Float[Tensor, "b m f"],
    local: Float[Tensor, "b n m"] | None,
    alpha: float,
) -> Float[Tensor, "b n m"]:
    """`alpha * cos(source, target) + (1 - alpha) * local` (LVM-Med, section 3.2; alpha is 0.8 there).

    Args:
        source: Node features.
        target: Node features.
        local: See `voxscale.matching.local_affinity`; None counts as zeros.
        alpha: Share of the global part.

    Raises:
        DataError: If the local part has another shape.
    """
    together = cosines(source, target)
    if local is None:
        return alpha * together
    if local.shape != together.shape:
        raise DataError(f"local must be {tuple(together.shape)}, not {tuple(local.shape)}", "bad_graph")
    return alpha * together + (1 - alpha) * local
