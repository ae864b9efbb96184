"""The part of DeepSpeed's engine that VoxScale uses; DeepSpeed itself leaves it untyped."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A model in training, as `deepspeed.initialize` returns it.

    Attributes:
        module: The model.
        optimizer: The ZeRO optimizer, or the plain one at stage 0; differs between stages, hence untyped.
        device: Where the model lives.
        global_rank: Rank of this process.
        dp_world_size: Number of data-parallel processes.
    """

    module: nn.Module
    optimizer: Any
    device: torch.device
    global_rank: int
    dp_world_size: int

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Forward pass."""
        ...

    def train(self) -> None:
        """Training mode."""
        ...

    def eval(self) -> None:
        """Evaluation mode."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Backward pass, scaled for accumulation, with the gradients' reduction over ranks."""
        ...

    def step(self) -> None:
        """Optimizer step at the end of an accumulation, else nothing."""
        ...

    def zero_optimization_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        ...

    def gradient_accumulation_steps(self) -> int:
        """Micro-batches per step."""
        ...

    def get_global_grad_norm(self) -> Tensor | float | None:
        """Norm of all gradients in the last step, before clipping."""
        ...

    def destroy(self) -> None:
        """Remove hooks and buffers."""
        ...
