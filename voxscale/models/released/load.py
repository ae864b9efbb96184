"""From a released file to a backbone with its weights, and a report of every name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from voxscale.errors import CheckpointError, ConfigError
from voxscale.models.build import ModelConfig
from voxscale.models.interface import Backbone
from voxscale.models.released import lvm_med, misfm, nnssl, stunet, swin_unetr
from voxscale.models.released.names import Named
from voxscale.models.released.pickles import read_pickled
from voxscale.models.released.report import COPIED, Fate, KeyReport

Form = Literal["stunet", "nnssl", "swin_unetr", "misfm", "lvm_med"]
FORMS: tuple[Form, ...] = get_args(Form)
NAMED = 5
"""How many weights an error names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Released:
    """A released file, read.

    Attributes:
        form: Its format.
        config: The backbone that it fits, by the shapes in it.
        named: Its weights.
        absent: What the names of weights start with that files of the format never hold.
        inert: Classes named in the file that were not built.
    """

    form: Form
    config: ModelConfig
    named: Named
    absent: tuple[str, ...]
    inert: tuple[str, ...]


def read_released(path: Path, form: Form) -> Released:
    """Read a file that another project released.

    Args:
        path: The file, as it was published.
        form: Whose: `stunet` (`.model` of nnU-Net v1), `nnssl` (OpenMind), `swin_unetr` (MONAI), `misfm`, `lvm_med`.

    Raises:
        ConfigError: If the format is unknown.
        CheckpointError: If the file is damaged, asks for code, or is not of the format.
    """
    modules: dict[str, Any] = dict(zip(FORMS, (stunet, nnssl, swin_unetr, misfm, lvm_med), strict=True))
    if form not in modules:
        raise ConfigError(f"released.format must be a known format, not {form}; choose from {', '.join(FORMS)}")
    found = read_pickled(path)
    named: Named = modules[form].read(found.content)
    return Released(form, modules[form].config(named.by_own_name()), named, modules[form].ABSENT, found.inert)


def transfer_released(
    model: Backbone, released: Released, *, fresh: tuple[str, ...], divide: bool = True, partial: bool = False
) -> KeyReport:
    """Copy released weights into a model; all that the format holds fit, or none is copied.

    Heads are copied where their classes are as many, and start anew where they are not.

    Args:
        model: Receives the weights, in its own number type and on its own device.
        released: See `read_released`.
        fresh: Prefixes of names that are not copied even where they fit.
        divide: Whether first convolutions repeated over several image channels are divided by their
            number, so that equal channels give the activations of one, as nnU-Net's loader of nnssl does;
            STU-Net's own scripts repeat without.
        partial: Take what fits; the report names the rest.

    Raises:
        CheckpointError: If a weight lacks or has another shape, unless `partial`, or if none fits.
            The model is then unchanged.
    """
    own = _own_weights(model)
    if any(tensor.is_meta for tensor in own.values()):
        raise CheckpointError("model must have storage for its weights, not be on the meta device; call to_empty first")
    fates, sources = _match(model, own, released, fresh, divide)
    lacking = tuple(_lacking(model, own, fates, released, fresh))
    fates += tuple(fate for fate, _ in lacking)
    bad = [f"{f.own or f.given} ({f.note})" for f in fates if _is_bad(model, f)]
    bad += [f"{fate.own} (not in the file)" for fate, expected in lacking if expected]
    if bad and not partial:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise CheckpointError(
            f"released weights must fit the model, not differ in {', '.join(bad[:NAMED])}{more}. Take the model that "
            "the file was made for, or set init.partial to take what fits"
        )
    if not any(fate.outcome in COPIED for fate in fates):
        raise CheckpointError("released weights must fit the model in at least one weight, not in none")
    with torch.no_grad():
        for key, tensor in sources.items():
            own[key].copy_(tensor)
    return KeyReport(released.form, fates, released.inert)


def _own_weights(model: Backbone) -> dict[str, Tensor]:
    named = {key for key, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {key: tensor for key, tensor in model.state_dict().items() if key in named}


def _first_names(model: Backbone, own: Mapping[str, Tensor]) -> dict[str, str]:
    """Some networks hold a weight under several names; this leads from each to the first."""
    every = model.state_dict(keep_vars=True)
    first = {id(every[key]): key for key in reversed(list(own))}
    return {key: first[id(tensor)] for key, tensor in every.items()}


def _match(
    model: Backbone, own: Mapping[str, Tensor], released: Released, fresh: tuple[str, ...], divide: bool
) -> tuple[tuple[Fate, ...], dict[str, Tensor]]:
    """The fate of each weight of the file, and what is to be copied."""
    first, named = _first_names(model, own), released.named
    fates: list[Fate] = []
    sources: dict[str, Tensor] = {}
    takers: dict[str, str] = {}
    for given, tensor in named.tensors.items():
        key = first.get(named.names.get(given, ""))
        if given in named.left:
            fates.append(Fate(given, None, "unused", named.left[given]))
        elif key is None:
            head = named.names[given].startswith(model.head_prefixes or "\0")
            note = "a head that is not built" if head else "the network has no such weight"
            fates.append(Fate(given, None, "unused" if head else "unknown", note))
        elif key in takers:
            same = torch.equal(tensor, named.tensors[takers[key]])
            fates.append(Fate(given, None, "duplicate" if same else "conflict", f"another name of {takers[key]}"))
        elif key.startswith(fresh or "\0"):
            fates.append(Fate(given, None, "unused", "starts anew by wish"))
        else:
            takers[key] = given
            fate, source = _fit(key, own[key], given, tensor, key in model.input_weights, divide)
            fates.append(fate)
            if source is not None:
                sources[key] = source
    return tuple(fates), sources


def _fit(key: str, own: Tensor, given: str, tensor: Tensor, first: bool, divide: bool) -> tuple[Fate, Tensor | None]:
    """One weight that both have."""
    if key.endswith("relative_position_index") and not torch.equal(own.cpu(), tensor):
        return Fate(given, key, "mismatch", "other places in the table"), None
    if own.shape == tensor.shape:
        return Fate(given, key, "loaded"), tensor
    if first and tensor.ndim == own.ndim and own.shape[:1] + own.shape[2:] == tensor.shape[:1] + tensor.shape[2:]:
        before, after = tensor.shape[1], own.shape[1]
        if before == 1:
            note = f"1 -> {after} image channels" + (f", divided by {after}" if divide else "")
            repeated = tensor.expand(own.shape) / (after if divide else 1)
            return Fate(given, key, "repeated", note), repeated
        if after == 1:
            return Fate(given, key, "summed", f"{before} -> 1 image channels"), tensor.sum(1, keepdim=True)
    return Fate(given, key, "mismatch", f"{tuple(tensor.shape)} for {tuple(own.shape)}"), None


def _lacking(
    model: Backbone, own: Mapping[str, Tensor], fates: tuple[Fate, ...], released: Released, fresh: tuple[str, ...]
) -> Iterator[tuple[Fate, bool]]:
    """The network's weights that no weight of the file met, and whether the file should hold them."""
    met = {fate.own for fate in fates}
    for key in own:
        if key in met:
            continue
        if key.startswith(fresh or "\0"):
            yield Fate(None, key, "reinitialised", "starts anew by wish"), False
        elif key.startswith(released.absent or "\0"):
            yield Fate(None, key, "reinitialised", "never in files of this format"), False
        else:
            head = key.startswith(model.head_prefixes or "\0")
            yield Fate(None, key, "reinitialised", "not in the file"), not head


def _is_bad(model: Backbone, fate: Fate) -> bool:
    """Whether a weight of the file has a fate that only `partial` allows."""
    if fate.outcome == "mismatch":
        return not (fate.own or "").startswith(model.head_prefixes or "\0")
    return fate.outcome in ("unknown", "conflict")
