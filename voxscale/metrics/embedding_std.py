"""Whether embeddings still differ from one another."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def embedding_std(embeddings: Float[Tensor, "n c"]) -> float:
    """Mean deviation of the components of unit vectors, times the root of their number (Chen and He 2021, section 4.1).

    Args:
        embeddings: One row per sample.

    Returns:
        0 if all point the same way, about 1 if they are spread evenly over the sphere.
    """
    unit = F.normalize(embeddings.double(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5)
