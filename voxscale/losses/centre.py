"""The running mean that a teacher's outputs are centred by, the same on all ranks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale import dist


class Centre(nn.Module):
    """Exponential moving average of the mean over the global batch (Caron et al. 2021, DINO).

    A buffer: it lies in checkpoints. It counts as a running statistic, so it is taken back with a dropped step.

    Attributes:
        value: (width,) the average.
    """

    value: Tensor
    track_running_stats = True

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(width))

    @torch.no_grad()
    def update(self, outputs: Float[Tensor, "b k"]) -> None:
        """Take in a batch; a collective call. The ranks' batches must be of equal size."""
        self.value.lerp_(dist.mean(outputs.float().mean(dim=0)).to(self.value), 1 - self.momentum)
