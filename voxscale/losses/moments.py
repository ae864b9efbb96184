"""Running mean and deviation of embeddings, the same on all ranks: what a direction that all share is taken away by."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voxscale.samples import OWN, Samples

How = Literal["plain", "centred", "standard"]
"""Embeddings as they are; less their mean; divided by their deviation, feature by feature, too."""

EPS = 1e-8
"""Added to variances: of features that do not vary at all, rounding is not made large."""


class Moments(nn.Module):
    """Exponential moving averages of mean and variance over the global batch, slot by slot.

    After n batches a batch that was taken in k batches ago weighs in proportion to momentum^k, from the first one on:
    nothing is left of the values it starts with. Buffers: they lie in checkpoints. They count as running statistics,
    so they are taken back with a dropped step.

    Attributes:
        mean: (slots, width).
        variance: (slots, width), that of the mixture of the batches: what their means differ by is in it.
        weight: (slots,) sum of the weights of what was taken in; 0 before the first batch.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    track_running_stats = True

    def __init__(self, slots: int, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(slots, width))
        self.register_buffer("variance", torch.ones(slots, width))
        self.register_buffer("weight", torch.zeros(slots))

    def reset(self) -> None:
        """As before the first batch."""
        self.mean.zero_()
        self.variance.fill_(1.0)
        self.weight.zero_()

    @torch.no_grad()
    def update(self, values: Float[Tensor, "b s d"], counted: Bool[Tensor, "b s"], over: Samples = OWN) -> None:
        """Take in a batch. A slot of which none counts stays as it is.

        Args:
            values: Of each sample and slot.
            counted: Those that count.
            over: Whose samples the batch has.
        """
        x, weights = values.detach().float(), counted.float()
        (count,) = over.total(weights.sum(dim=0))
        share = weights[:, :, None] / count.clamp(min=1e-9)[None, :, None]
        (mean,) = over.total((x * share).sum(dim=0))
        (variance,) = over.total(((x - mean).square() * share).sum(dim=0))
        weight = self.momentum * self.weight.float() + 1 - self.momentum
        some = count > 0
        rate = torch.where(some, (1 - self.momentum) / weight, 0.0)[:, None]
        step = mean - self.mean.float()
        spread = (1 - rate) * (self.variance.float() + rate * step.square()) + rate * variance
        self.variance.copy_(torch.where(some[:, None], spread, self.variance.float()))
        self.mean.add_((rate * step).to(self.mean))
        self.weight.copy_(torch.where(some, weight, self.weight.float()))

    def apply_to(self, values: Float[Tensor, "b s d"], how: How) -> Float[Tensor, "b s d"]:
        """Take the moments out; they are constants to the gradient.

        Args:
            values: Of each sample and slot.
            how: What of them.
        """
        if how == "plain":
            return values
        # Copies, as the buffers change before the backward pass.
        less = values - self.mean.to(values, copy=True)
        return less if how == "centred" else less * (self.variance + EPS).rsqrt().to(values)
