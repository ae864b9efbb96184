"""Batch norms whose weights are bf16: their running statistics stay fp32."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of all batch norms, in the order of modules."""
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    return [value for m in norms for value in (m.running_mean, m.running_var) if value is not None]


def mend_batch_norms(model: nn.Module) -> int:
    """Have batch norms of mixed number types compute with scale and shift in fp32, in place.

    DeepSpeed rounds weights to bf16 and leaves statistics in fp32. torch 2.13 takes
    bf16 images with weights and statistics that are both fp32, and refuses this
    mixture. Statistics in bf16 would stand still: an update of a tenth of a small
    difference is below their last place.

    Returns:
        Number of norms that keep statistics.
    """
    norms = [m for m in model.modules() if type(m) in BatchNorm.__args__ and getattr(m, "track_running_stats", False)]
    for norm in norms:
        # The attribute shadows the method of this instance only; names of weights and hooks stay as they are.
        norm.forward = _mended(norm, norm.forward)  # pyright: ignore[reportArgumentType]
    return len(norms)


def _mended(norm: BatchNorm, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        mean, count = norm.running_mean, norm.num_batches_tracked
        if mean is None or not norm.affine or mean.dtype == norm.weight.dtype:
            return plain(x)
        if norm.training and count is not None:
            count.add_(1)
        share = norm.momentum
        if share is None:  # a plain average over all batches
            share = 1 / float(count) if norm.training and count is not None else 0.0
        scale, shift = norm.weight.float(), norm.bias.float()
        return F.batch_norm(x, mean, norm.running_var, scale, shift, norm.training, share, norm.eps)

    return forward
