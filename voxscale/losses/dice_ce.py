"""Soft Dice and cross-entropy of the same logits in one go."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from voxscale.errors import DataError
from voxscale.samples import OWN, Samples

_CACHED = 1 << 18
"""Logits per thread that are worked on at a time on CPUs: as float32 they stay in the cache between two operations."""
_LAUNCHED = 1 << 26
"""The same on GPUs, where memory is the limit and small pieces would leave most of the card idle."""

_ROW = 32
"""Classes from which on a voxel's logits side by side fill the machine's vectors; fewer are turned first."""


def dice_and_cross_entropy(
    logits: Float[Tensor, "b k z y x"],
    target: UInt8[Tensor, "b z y x"],
    *,
    pooled: bool,
    background: bool,
    eps: float = 1e-5,
    mask: Bool[Tensor, "b z y x"] | None = None,
    over: Samples = OWN,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What `soft_dice_loss` and `cross_entropy` give, with their gradients, in less time and memory.

    Voxels are taken in pieces, in the layout that the logits have, and probabilities
    are computed again for the gradient. So nothing of the size of the logits
    exists but the logits and their gradient. It can be derived once only.

    Args:
        logits: Class scores before the softmax; computed in float32 whatever their type, float64 stays.
        target: Class of each voxel, below k.
        pooled: See `soft_dice_loss`, which has all but the cross-entropy in common with this.
        background: Whether class 0 counts for the Dice; it always does for the cross-entropy.
        eps: Added to numerator and denominator of the Dice, in voxels.
        mask: True where a voxel counts; all of them if None. An empty mask gives a cross-entropy of 0.
        over: Whose voxels the cross-entropy is the mean of and a pooled Dice is summed over. A Dice per sample is a
            mean over the samples at hand.

    Returns:
        One minus the mean soft Dice; the mean cross-entropy in nats.

    Raises:
        DataError: If the shapes do not belong together, or no class is left.
    """
    classes = logits.shape[1]
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise DataError(f"target must have the grid of logits {tuple(logits.shape)}, not {tuple(target.shape)}", "grid")
    if mask is not None and mask.shape != target.shape:
        raise DataError(f"mask must have the shape {tuple(target.shape)} of target, not {tuple(mask.shape)}", "grid")
    if classes < 2 and not background:
        raise DataError("logits must have 2 or more classes when the background does not count, not 1", "grid")
    if not logits.is_contiguous() and not logits.movedim(1, -1).is_contiguous():
        logits = logits.contiguous()
    result: Any = _DiceCE.apply(logits, target, mask, pooled, background, eps, over)
    return result


class _DiceCE(torch.autograd.Function):
    """Both losses; the gradient at a logit x_k of a voxel of class t is p_k (a_k + c) + [k = t] d.

    With A and B the derivatives of the Dice loss by the sums of p_k over all
    voxels and over those of class k, w the weight of the cross-entropy over its
    voxels: a = A, d = B_t p_t - w and c = w - sum_k A_k p_k - B_t p_t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None,
        pooled: bool,
        background: bool,
        eps: float,
        over: Samples,
    ) -> tuple[Tensor, Tensor]:
        shape = (logits.shape[0], logits.shape[1])
        overlap, size = torch.zeros(2, *shape, dtype=torch.float64, device=logits.device)
        surprise = torch.zeros((), dtype=torch.float64, device=logits.device)
        for sample, part, axis, labels, counted in _pieces(logits, target, mask):
            values = part.to(_wide(part.dtype)).log_softmax(axis)
            hits = _pick(values, labels, axis)
            surprise -= (hits if counted is None else hits * counted).double().sum()
            hits, values = hits.exp(), values.exp_()
            if counted is None:
                size[sample] += values.sum(1 - axis)
            else:
                hits = hits * counted
                size[sample] += (values * counted.unsqueeze(axis)).sum(1 - axis)
            overlap[sample].index_add_(0, labels, hits.double())
            true = torch.ones_like(hits) if counted is None else counted
            size[sample].index_add_(0, labels, true.double())
        voxels = torch.full((), target.numel(), device=logits.device) if mask is None else mask.sum()
        surprise, voxels = over.total(surprise, voxels)
        voxels = voxels.clamp(min=1)
        if pooled:
            overlap, size = over.total(overlap.sum(0, keepdim=True), size.sum(0, keepdim=True))
        dice = (2 * overlap + eps) / (size + eps)
        share = torch.full_like(dice, 1 / (dice.numel() if background else dice[:, 1:].numel()))
        if not background:
            share[:, 0] = 0
        # Derivatives by the probabilities' sums: those over the whole grid, and those over the class's own voxels.
        times = over.ranks if pooled else 1  # see `voxscale.samples`
        ctx.whole, ctx.own = times * share * dice / (size + eps), -2 * times * share / (size + eps)
        ctx.voxels = voxels / over.ranks
        ctx.save_for_backward(logits, target, mask)
        kind = _wide(logits.dtype)
        return (1 - (dice * share).sum()).to(kind), (surprise / voxels).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, target, mask = ctx.saved_tensors
        kind = _wide(logits.dtype)
        whole, own = (grads[0] * ctx.whole).to(kind), (grads[0] * ctx.own).to(kind)
        weight = (grads[1] / ctx.voxels).to(kind)
        out = torch.empty_like(logits)
        for (sample, part, axis, labels, counted), (_, to, *_) in zip(
            _pieces(logits, target, mask), _pieces(out, target, mask), strict=True
        ):
            row = sample if len(whole) > 1 else 0
            values = part.to(kind).softmax(axis)
            pull = own[row][labels] * _pick(values, labels, axis)
            mean = values.mv(whole[row]) if axis else whole[row] @ values
            values *= (weight - pull - mean).unsqueeze(axis) + whole[row].unsqueeze(1 - axis)
            values.scatter_add_(axis, labels.unsqueeze(axis), (pull - weight).unsqueeze(axis))
            if counted is not None:
                values *= counted.unsqueeze(axis)
            to.copy_(values)
        return out, None, None, None, None, None, None


def _wide(kind: torch.dtype) -> torch.dtype:
    return torch.promote_types(kind, torch.float32)


def _pick(values: Tensor, labels: Tensor, axis: int) -> Tensor:
    return values.gather(axis, labels.unsqueeze(axis)).squeeze(axis)


def _pieces(
    logits: Tensor, target: Tensor, mask: Tensor | None
) -> Iterator[tuple[int, Tensor, int, Tensor, Tensor | None]]:
    """Views of some voxels of a sample: sample, logits, their axis of classes, labels and what counts."""
    classes = logits.shape[1]
    most = _CACHED * torch.get_num_threads() if logits.device.type == "cpu" else _LAUNCHED
    step = max(most // classes, 1)
    rows = logits.stride(1) == 1 and classes > 1
    axis = int(rows and classes >= _ROW)
    for sample in range(len(logits)):
        flat = logits[sample].movedim(0, -1).view(-1, classes) if rows else logits[sample].view(classes, -1)
        flat = flat.T if rows and not axis else flat
        labels = target[sample].reshape(-1)
        counted = None if mask is None else mask[sample].reshape(-1)
        for start in range(0, labels.numel(), step):
            here = slice(start, start + step)
            part = flat[here] if axis else flat[:, here]
            yield sample, part, axis, labels[here].long(), None if counted is None else counted[here]
