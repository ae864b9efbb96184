"""Which samples a loss is taken over: those of this process alone, or those of all ranks in the same micro-batch.

Engines average gradients over ranks. A loss that divides by a count, or is no mean of samples at all (Dice of a batch,
deviations, contrasts), is then not that of the whole batch, unless its sums are taken over all ranks. A loss that is
given `AllRanks` has the same value on every rank, that of all samples, and a gradient whose mean over ranks is its own.
"""

from typing import Any

import torch
import torch.distributed as td
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from voxscale import dist
from voxscale.stopwatch import WAITING


class Samples:
    """Those at hand: no rank is asked. All methods of its subclass are collective calls.

    Attributes:
        ranks: How many ranks hold samples.
        rank: Place of this one among them.
    """

    ranks: int = 1
    rank: int = 0

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over ranks of whatever each has, equal in shape on all of them."""
        return parts

    def rows(self, part: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "n ..."]:
        """The rows of all ranks in their order; all must have equally many."""
        return part

    def rolled(self, part: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
        """In place of each row the one before it, the first one's is the last of all; without gradient."""
        return part.detach().roll(1, dims=0)


class AllRanks(Samples):
    """Those of all ranks. What is made of `total` and `rows` must be the same on all, as gradients rely on it."""

    def __init__(self) -> None:
        self.ranks, self.rank = dist.world_size(), dist.rank()

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """See `Samples.total`; in one message, in float64. What is not finite stays with the rank that has it.

        The step is dropped on all ranks anyway, and whoever asks for the cause sees whose samples it came from.
        """
        found: Any = _Total.apply(self.ranks, *parts)
        return found

    def rows(self, part: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "n ..."]:
        """See `Samples.rows`; what is not finite is 0 to other ranks, as in `total`."""
        found: Any = _Rows.apply(self, part)
        return found

    def rolled(self, part: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
        """See `Samples.rolled`; of other ranks a row is sent, not all."""
        last = part.detach()[-1:]
        sent = last.to(torch.uint8) if last.dtype == torch.bool else last
        with WAITING.running(part.device):
            before = dist.from_rank_before(sent)
        return torch.cat([before.to(last.dtype), part.detach()[:-1]])


OWN = Samples()


def all_samples() -> Samples:
    """Those of all ranks; where there is one rank, its own, for which nobody is asked."""
    return AllRanks() if td.is_initialized() and dist.world_size() > 1 else OWN


class _Total(torch.autograd.Function):
    """All ranks make the same loss of the sums, so the gradient is known without asking: times ranks."""

    @staticmethod
    def forward(ctx: Any, ranks: int, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        own = torch.cat([part.double().flatten() for part in parts])
        sent = own.nan_to_num(0.0, 0.0, 0.0)
        with WAITING.running(own.device):
            every = dist.added(sent)
        whole = every + (own - sent)
        split = whole.split([part.numel() for part in parts])
        found = tuple(one.view(part.shape).to(part.dtype) for one, part in zip(split, parts, strict=True))
        ctx.mark_non_differentiable(*(part for part in found if not part.is_floating_point()))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *(None if grad is None or not grad.is_floating_point() else ctx.ranks * grad for grad in grads)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, over: AllRanks, part: Tensor) -> Tensor:
        ctx.ranks, ctx.own = over.ranks, slice(over.rank * len(part), (over.rank + 1) * len(part))
        sent = part.to(torch.uint8) if part.dtype == torch.bool else part
        sent = sent.nan_to_num(0.0, 0.0, 0.0) if part.is_floating_point() else sent
        with WAITING.running(part.device):
            found = dist.rows(sent).to(part.dtype)
        if found.is_floating_point():
            found[ctx.own] = part
        else:
            ctx.mark_non_differentiable(found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.ranks * grads[0][ctx.own]
