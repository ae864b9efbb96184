"""Scores of images whose labels show some of the classes: all others are background to them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from voxscale.errors import DataError


def marginal_logits(logits: Float[Tensor, "b k z y x"], annotated: Sequence[int]) -> Float[Tensor, "b m z y x"]:
    """Add up the probabilities of the background and of all classes that a label does not show.

    Fang and Yan 2020 (PIPO-FAN, IEEE TMI 39, section III-C) and Shi et al. 2021 (marginal and exclusion
    loss, Medical Image Analysis 70, section 3.1): such a class may lie wherever the label says background,
    so background is only punished for what the label does show. In logits the sum is a logsumexp, and of
    the gradient of this one the classes within have shares as their probabilities are.

    Args:
        logits: Class scores before the softmax, background first.
        annotated: Classes that labels of these images show, without the background, each once.

    Returns:
        Scores of the background and of the annotated classes, in their order.

    Raises:
        DataError: If a class is not one of the logits' own, or is named twice.
    """
    count = logits.shape[1]
    if len(set(annotated)) != len(annotated) or not all(0 < c < count for c in annotated):
        raise DataError(
            f"annotated must be different classes from 1 to {count - 1}, not {list(annotated)}", "bad_label"
        )
    if list(annotated) == list(range(1, count)):
        return logits
    merged = [c for c in range(count) if c not in set(annotated)]
    background = logits[:, merged].float().logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, list(annotated)].float()], dim=1)


def marginal_target(target: UInt8[Tensor, "b z y x"], annotated: Sequence[int]) -> UInt8[Tensor, "b z y x"]:
    """Number classes as `marginal_logits` does; any other class is background."""
    table = torch.zeros(256, dtype=torch.uint8, device=target.device)
    table[list(annotated)] = torch.arange(1, len(annotated) + 1, dtype=torch.uint8, device=target.device)
    return table[target.long()]
