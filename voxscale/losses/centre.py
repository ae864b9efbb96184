"""The running mean that a teacher's outputs are centred by, the same on all ranks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxscale.samples import OWN, Samples


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
    def update(self, outputs: Float[Tensor, "b k"], over: Samples = OWN) -> None:
        """Take in a batch.

        Args:
            outputs: Of the teacher.
            over: Whose samples the batch has; ranks must have equally many.
        """
        (total,) = over.total(outputs.float().mean(dim=0))
        self.value.lerp_((total / over.ranks).to(self.value), 1 - self.momentum)
