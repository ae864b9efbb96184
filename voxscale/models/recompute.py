"""Stages that are computed again in the backward pass, to keep less memory until then."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

T = TypeVar("T")


def recomputed(model: nn.Module, function: Callable[..., T], *inputs: object, keep_convolutions: bool) -> T:
    """Call a part of a network, keeping only its inputs for the backward pass.

    Args:
        model: The whole network, whose running statistics must see each batch once.
        function: The part.
        inputs: What it takes.
        keep_convolutions: Whether what its convolutions return is kept as well.
    """
    contexts: Callable[[], Any] = partial(create_selective_checkpoint_contexts, _policy)
    if not keep_convolutions:
        contexts = partial(tuple, (nullcontext(), _Recomputing(model)))
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]


def _policy(_: object, operation: object, *inputs: object, **__: object) -> CheckpointPolicy:
    """Keep what convolutions return, but for transposed ones, to which the rest of an enlargement is added."""
    kept = operation is torch.ops.aten.convolution.default and not inputs[6]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class _Recomputing:
    """Takes running statistics back after a recomputation, in which norms see a batch again; for several times."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        self._held = [(buffer, buffer.clone()) for buffer in running_statistics(self._model)]

    def __exit__(self, *error: object) -> None:
        take_back(self._held)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes: those of norms."""
    norms = (m for m in model.modules() if getattr(m, "track_running_stats", False))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def take_back(held: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set each tensor to its copy, unseen by autograd, which may have saved it for a backward pass to come."""
    for tensor, before in held:
        tensor.data.copy_(before)
