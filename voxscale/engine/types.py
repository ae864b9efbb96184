"""The part of DeepSpeed's engine that VoxScale uses; DeepSpeed itself leaves it untyped."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A model in training, as `deepspeed.initialize` returns it.

    Attributes:
        module: The model.
        optimizer: The ZeRO optimizer, or the plain one at stage 0; differs between stages, hence untyped.
        clip_fp32_gradients: Clips gradients where there is no ZeRO optimizer to do it.
        device: Where the model lives.
        global_rank: Rank of this process.
        dp_world_size: Number of data-parallel processes.
    """

    module: nn.Module
    optimizer: Any
    clip_fp32_gradients: Callable[[], None]
    device: torch.device
    global_rank: int
    dp_world_size: int

    def __call__(self, inputs: Any) -> Any:
        """Forward pass of the module, which knows what it takes and returns."""
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

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Say whether the next micro-batch is the last one of a step."""
        ...

    def gradient_clipping(self) -> float:
        """Largest global gradient norm."""
        ...

    def destroy(self) -> None:
        """Remove hooks and buffers."""
        ...
