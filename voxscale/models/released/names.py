"""Weights of a released file under the names of our backbones."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from voxscale.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors of a file, each with a name in the network or the reason why it has none.

    Attributes:
        tensors: By their names in the file.
        names: Of those that the network has: from the file's name to the network's.
        left: Of the others: from the file's name to the reason.
    """

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    left: Mapping[str, str]

    def by_own_name(self) -> dict[str, Tensor]:
        """The tensors that have a name in the network, under it."""
        return {own: self.tensors[given] for given, own in self.names.items()}


def name(tensors: Mapping[str, Tensor], rule: Callable[[str], str | None], reason: str) -> Named:
    """Rename by a rule.

    Args:
        tensors: By the file's names.
        rule: From the file's name to the network's, None for weights of other parts.
        reason: Why those are left.
    """
    found = {key: rule(key) for key in tensors}
    names = {key: own for key, own in found.items() if own is not None}
    return Named(tensors, names, {key: reason for key, own in found.items() if own is None})


def tensors_at(content: object, *places: str) -> dict[str, Tensor]:
    """The tensors by name that stand in a file's content at the first of the places that is there.

    Prefixes `module.`, which parallel training adds, are removed.

    Raises:
        CheckpointError: If there are none.
    """
    values: object = None
    if isinstance(content, Mapping):
        held = cast(Mapping[str, object], content)
        values = next((held[place] for place in places if place in held), held if "" in places else None)
    weights = cast(Mapping[str, object], values) if isinstance(values, Mapping) else {}
    found = {key: t for key, t in weights.items() if isinstance(t, Tensor)}
    if not found or any(t.layout != torch.strided or t.is_quantized for t in found.values()):
        where = " or ".join(place or "at its top" for place in places)
        raise CheckpointError(
            f"released.weights must hold dense tensors {where}, not none; is the format the right one?"
        )
    return {key.removeprefix("module."): tensor for key, tensor in found.items()}


def shape(weights: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """The shape of a weight that files of a format always hold.

    Raises:
        CheckpointError: If it is not there.
    """
    if key not in weights:
        raise CheckpointError(f"released.weights must hold {key}, as files of this format do; is it the right one?")
    return tuple(weights[key].shape)


def count(weights: Iterable[str], pattern: str) -> int:
    """How many of `pattern.format(0)`, `pattern.format(1)`, ... are there, without a gap."""
    held, number = set(weights), 0
    while pattern.format(number) in held:
        number += 1
    return number


def window_of(weights: Mapping[str, Tensor], key: str, dims: int) -> tuple[int, int]:
    """Window and attention heads of a table of relative positions ((2 window - 1)^dims, heads).

    Raises:
        CheckpointError: If it is not such a table.
    """
    rows, heads = (*shape(weights, key), 0, 0)[:2]
    side = round(rows ** (1 / dims))
    if side**dims != rows or side % 2 == 0:
        raise CheckpointError(f"{key} must have (2 window - 1)^{dims} rows, not {rows}")
    return (side + 1) // 2, heads
