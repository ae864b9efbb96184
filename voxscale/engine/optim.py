"""Optimizers over parameter groups: norms and biases are not decayed, layers and heads have rates of their own."""

import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from voxscale.config import require
from voxscale.engine.config import OptimConfig


@runtime_checkable
class Layered(Protocol):
    """A network that says itself which layers it has, such as a backbone."""

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of all weights of the heads start with."""
        ...

    def parameter_layers(self) -> dict[str, int]:
        """The layer of each parameter, 0 at the input."""
        ...

    def no_decay(self) -> frozenset[str]:
        """Names of parameters that weight decay should leave alone."""
        ...


def layers_by_name(model: nn.Module) -> dict[str, int]:
    """Number the layers of a model that does not say itself which it has, in the order of its parameters.

    A layer is the part of a name up to its first number, such as `blocks.7`,
    or up to its last dot where it has none.
    """
    order: dict[str, int] = {}
    return {name: order.setdefault(_layer(name), len(order)) for name, _ in model.named_parameters()}


def _layer(name: str) -> str:
    found = re.match(r"(.*?\.)?\d+(?=\.)", name)
    return found[0] if found else name.rpartition(".")[0] or name


def parameter_groups(model: nn.Module, config: OptimConfig, heads: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Sort trainable parameters by decay and by rate.

    The top layer below the heads has the full rate, and each layer below it
    `layer_decay` times that of the one above.

    Args:
        model: The network; of one that does not say which layers it has, they are told by names.
        config: Weight decay and factors of the rate.
        heads: What the names of the heads' weights start with; by default what the network says.

    Returns:
        Groups with `params`, `weight_decay` and `lr_scale`, the factor of their learning rate.

    Raises:
        ConfigError: If there is a rate for heads, but no head to be trained.
    """
    if isinstance(model, Layered):
        layers, still, heads = model.parameter_layers(), model.no_decay(), heads or model.head_prefixes
    else:
        layers = layers_by_name(model)
        still = frozenset(name for name, p in model.named_parameters() if p.ndim <= 1)
    scales = _scales(layers, config, heads)
    trained = any(p.requires_grad and name.startswith(heads or ("\0",)) for name, p in model.named_parameters())
    require(config.head_lr == 1 or trained, "optim.head_lr", "1 for a network without heads", config.head_lr)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decayed = name not in still
            group = {"params": [], "weight_decay": config.weight_decay if decayed else 0.0, "lr_scale": scales[name]}
            groups.setdefault((scales[name], decayed), group)["params"].append(p)
    return [groups[key] for key in sorted(groups, key=lambda key: (-key[0], not key[1]))]


def _scales(layers: Mapping[str, int], config: OptimConfig, heads: tuple[str, ...]) -> dict[str, float]:
    """Factor of each parameter's rate."""
    is_head = {name: bool(heads) and name.startswith(heads) for name in layers}
    top = max((layer for name, layer in layers.items() if not is_head[name]), default=0)
    return {
        name: config.head_lr if is_head[name] else config.layer_decay ** (top - layer) for name, layer in layers.items()
    }


def build_optimizer(model: nn.Module, config: OptimConfig, heads: tuple[str, ...] = ()) -> torch.optim.Optimizer:
    """Make the optimizer over the groups of `parameter_groups`."""
    groups = parameter_groups(model, config, heads)
    # One pass over all states, without copies of them; on machines with a GPU also for states in host memory.
    fused = True if torch.cuda.is_available() else None
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=fused)


def moment_names(config: OptimConfig) -> tuple[str, ...]:
    """Names of the optimizer's per-parameter tensors."""
    return ("exp_avg", "exp_avg_sq") if config.kind == "adamw" else ("momentum_buffer",)
