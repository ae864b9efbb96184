"""Transfer of pretrained weights into a model, complete or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from voxscale.errors import CheckpointError
from voxscale.models.interface import Backbone

BACKBONE = "backbone."
"""What the names of a backbone's weights start with inside a pretraining network."""

NAMED = 5
"""How many weights an error names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a transfer did, by weight name.

    Attributes:
        loaded: Copied into the model.
        reinitialised: Of the model, left as they were initialised.
        unused: Of the pretrained weights, left out because they are fresh by wish.
        repeated: Those of `loaded` that were spread over several input channels.
    """

    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unused: tuple[str, ...]
    repeated: tuple[str, ...]

    def text(self) -> str:
        """The report as lines to print; all names but those loaded."""
        lines = [f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.reinitialised)} weights"]
        notes = {
            "left as initialised": self.reinitialised,
            "unused": self.unused,
            "repeated over input channels": self.repeated,
        }
        lines += [f"{what} {len(names)}: {', '.join(names)}" for what, names in notes.items() if names]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, list[str]]:
        """The report as plain JSON values."""
        return {what: list(names) for what, names in asdict(self).items()}


def transfer(model: Backbone, weights: Mapping[str, Tensor], *, fresh: tuple[str, ...]) -> TransferReport:
    """Copy pretrained weights into a model; all of them fit or none is copied.

    Images of several channels can start from weights of one: the first
    convolutions are repeated along the input axis and divided by the number of
    channels, so that equal channels give the activations of the single one.

    Args:
        model: Receives the weights, in its own number type and on its own device.
        weights: Pretrained tensors by name; a `module.` prefix on all of them is ignored, and of a pretraining
            network only the backbone is taken.
        fresh: Prefixes of names that are not copied even where they fit, such as `seg_outputs.`.

    Raises:
        CheckpointError: If a weight that is not fresh is missing, left over or of another
            shape; names the first ones. The model is then unchanged.
    """
    named = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    state = model.state_dict()
    own = {key: tensor for key, tensor in state.items() if key in named}
    if any(tensor.is_meta for tensor in own.values()):
        raise CheckpointError("model must have storage for its weights, not be on the meta device; call to_empty first")
    # Some networks hold a weight under several names; the first one stands for it.
    given = {key: t for key, t in _without_prefix(weights).items() if key in own or key not in state}
    wanted = [key for key in own if not key.startswith(fresh)]
    offered = [key for key in given if not key.startswith(fresh)]
    repeated = tuple(
        key for key in model.input_weights if key in wanted and key in given and _can_repeat(own[key], given[key])
    )
    sources = {key: _repeat(given[key], own[key].shape[1]) if key in repeated else given[key] for key in offered}
    _check(own, sources, wanted)
    with torch.no_grad():
        for key in wanted:
            own[key].copy_(sources[key])
    return TransferReport(
        loaded=tuple(wanted),
        reinitialised=tuple(key for key in own if key.startswith(fresh)),
        unused=tuple(key for key in given if key.startswith(fresh)),
        repeated=repeated,
    )


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): tensor for key, tensor in weights.items()}
    return backbone_only(weights)


def backbone_only(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a pretraining network's weights, those of its backbone, by the names that they have there; else all."""
    own = [key for key in weights if key.startswith(BACKBONE)]
    return {key.removeprefix(BACKBONE): weights[key] for key in own} if own else dict(weights)


def _can_repeat(own: Tensor, given: Tensor) -> bool:
    single = (*own.shape[:1], 1, *own.shape[2:])
    return own.shape[1] > 1 and given.shape == single


def _repeat(weight: Tensor, channels: int) -> Tensor:
    return weight.expand(-1, channels, *weight.shape[2:]) / channels


def _check(own: Mapping[str, Tensor], sources: Mapping[str, Tensor], wanted: Sequence[str]) -> None:
    missing = [f"{key} {tuple(own[key].shape)}" for key in wanted if key not in sources]
    extra = [f"{key} {tuple(sources[key].shape)}" for key in sources if key not in own]
    other = [
        f"{key} {tuple(sources[key].shape)} for {tuple(own[key].shape)}"
        for key in wanted
        if key in sources and sources[key].shape != own[key].shape
    ]
    found = {"lack": missing, "have other shapes in": other, "hold unknown": extra}
    problems = [f"{what} {_first(names)}" for what, names in found.items() if names]
    if problems:
        raise CheckpointError(
            f"weights must fit the model, not {'; '.join(problems)}. Take weights of the same architecture, width and "
            "depth, or list the prefixes of parts that shall start anew in `fresh`"
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
