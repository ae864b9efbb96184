"""Optimizers over parameter groups: norms and biases are not decayed."""

import torch
from torch import nn

from voxscale.engine.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make the optimizer; vectors (norms, biases) form a group without weight decay."""
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


def moment_names(config: OptimConfig) -> tuple[str, ...]:
    """Names of the optimizer's per-parameter tensors."""
    return ("exp_avg", "exp_avg_sq") if config.kind == "adamw" else ("momentum_buffer",)
