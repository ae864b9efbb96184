"""A backbone with the branches that train it, as one network: one forward is one step's losses."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.scene import Scene
from voxscale import dist
from voxscale.batch import Losses
from voxscale.engine import layout
from voxscale.engine.again import again
from voxscale.engine.meter import BACKWARD
from voxscale.models.interface import Backbone
from voxscale.samples import OWN, Samples
from voxscale.stopwatch import WAITING

SLOWNESS = 0.9
"""Share of the old balance that a measurement leaves."""

MOST = 10.0
"""Greatest factor by which a loss is scaled up or down for balance.

A branch that has stopped learning has hardly a gradient; scaled up a hundredfold its noise ended a training.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A step of the network.

    Attributes:
        plans: What each branch wants, by its name.
        weights: Weight of each branch.
        teacher: The network whose weights are averages, if a branch wants one.
        measure: Whether the branches' gradients are measured.
        balance: Whether the measurements change the weights.
        channels_last: Memory layout of the images.
        over: Whose samples losses are taken over; the same as those of the plans' scene.
    """

    plans: Mapping[str, Plan]
    weights: Mapping[str, float]
    teacher: "Pretraining | None" = None
    measure: bool = False
    balance: bool = False
    channels_last: bool = False
    over: Samples = OWN


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """A wish for the branches' pictures instead of their losses.

    Attributes:
        plans: What each branch wants, by its name.
        channels_last: Memory layout of the images.
    """

    plans: Mapping[str, Plan]
    channels_last: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A wish for the features of some images, without any branch.

    Attributes:
        images: (n, 1, z, y, x) in 0..1.
        decoder: Whether the decoder's features are wanted too.
        channels_last: Memory layout of the images.
    """

    images: Tensor
    decoder: bool
    channels_last: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """A wish for what the branches' heads say.

    Attributes:
        plans: What each branch wants, by its name.
        draw: Of the permutations of the control.
        channels_last: Memory layout of the images.
    """

    plans: Mapping[str, Plan]
    draw: torch.Generator
    channels_last: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a head says of a scene.

    Attributes:
        scores: (n, classes) logits.
        shuffled: The same of features each of which is permuted over the rows, so that no row's belong together.
        samples: (n,) number of each row's sample.
        labelled: Whether samples are those of the labelled batch.
    """

    scores: Tensor
    shuffled: Tensor
    samples: Tensor
    labelled: bool


class Pretraining(nn.Module):
    """Backbone and branches.

    Attributes:
        backbone: What the training is for.
        branches: Objectives by name.
        balances: (branches,) factor of each loss, from its gradient.
        norms: (branches,) norm of each branch's gradient at the backbone's features, as last measured.
        weighed: Branch and name of terms that are measured one by one.
        term_norms: (terms,) norm of each of their gradients, without weight; absent if there are none.
    """

    balances: Tensor
    norms: Tensor
    term_norms: Tensor

    def __init__(self, backbone: Backbone, branches: Mapping[str, Objective]) -> None:
        super().__init__()
        self.backbone, self.branches = backbone, nn.ModuleDict(dict(branches))
        self.register_buffer("balances", torch.ones(len(branches)))
        self.register_buffer("norms", torch.zeros(len(branches)))
        self.weighed = [(name, term) for name, branch in branches.items() for term in branch.weighed]
        if self.weighed:
            self.register_buffer("term_norms", torch.zeros(len(self.weighed)))

    def objectives(self) -> dict[str, Objective]:
        """The branches, typed."""
        return {name: branch for name, branch in self.branches.items() if isinstance(branch, Objective)}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights afresh; those of the backbone first, so that they do not depend on the branches."""
        self.backbone.initialise(generator)
        for branch in self.objectives().values():
            branch.initialise(generator)
        self.balances.fill_(1.0)
        self.norms.zero_()
        if self.weighed:
            self.term_norms.zero_()

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of all weights of the heads start with: those of the branches, and of the backbone's own."""
        return ("branches.", *(f"backbone.{name}" for name in self.backbone.head_prefixes))

    def parameter_layers(self) -> dict[str, int]:
        """The layer of each parameter, 0 at the input, for layer-wise decay of the learning rate.

        Layers are those of the backbone, its decoder's included even if no branch looks at it; the branches lie above.
        """
        own = self.backbone.parameter_layers()
        layers = {f"backbone.{name}": layer for name, layer in own.items()}
        return layers | {name: max(own.values()) + 1 for name, _ in self.branches.named_parameters(prefix="branches")}

    def no_decay(self) -> frozenset[str]:
        """Names of parameters that weight decay should leave alone."""
        own = {name for name, p in self.branches.named_parameters(prefix="branches") if p.ndim <= 1}
        return frozenset(own | {f"backbone.{name}" for name in self.backbone.no_decay()})

    @torch.no_grad()
    def plans(self, scene: Scene) -> dict[str, Plan]:
        """What each branch wants of a scene."""
        return {name: branch.plan(scene) for name, branch in self.objectives().items()}

    def forward(self, job: Job | Pictures | Look | Heads) -> dict[str, dict[str, Any]]:
        """Make all passes, each once, and compute every branch's losses.

        Returns:
            `terms`: each loss term by `branch/term`, or by its own name if there is one branch, without the weights;
            `weights`: of each term, a number; `watched`: other scalars. Asked for pictures: `pictures`, volumes of
            the first sample; for their heads: `heads`, a `Said` of each; for a look: `look`, with what was `seen`.
        """
        if isinstance(job, Pictures):
            return {"pictures": self._pictures(job)}
        if isinstance(job, Heads):
            return {"heads": self._said(job)}
        if isinstance(job, Look):
            one = Pass(job.images, job.decoder)
            return {"look": {"seen": look(self.backbone, {_key(one): one}, job.channels_last)[_key(one)]}}
        seen = look(self.backbone, wanted(job.plans, teacher=False), job.channels_last)
        if job.teacher is not None:
            with torch.no_grad():
                seen |= look(job.teacher.backbone, wanted(job.plans, teacher=True), job.channels_last)
        found: dict[str, Losses] = {}
        for name, branch in self.objectives().items():
            plan = job.plans[name]
            own = {key: seen[_key(one)] for key, one in plan.passes.items()}
            teacher = None if job.teacher is None else job.teacher.objectives()[name]
            found[name] = branch.losses(own, plan, teacher, job.over)
        if job.measure:
            self._measure(found, list(seen.values()), job)
        return self._gather(found, job)

    def _own(self, job: Pictures | Heads) -> Iterator[tuple[str, Objective, dict[str, Seen], Plan]]:
        """Each branch with what this network, not a teacher, makes of its passes."""
        seen = look(self.backbone, wanted(job.plans, teacher=False), job.channels_last)
        for name, branch in self.objectives().items():
            plan = job.plans[name]
            yield name, branch, {key: seen[_key(one)] for key, one in plan.passes.items() if not one.teacher}, plan

    def _pictures(self, job: Pictures) -> dict[str, NDArray[Any]]:
        out: dict[str, NDArray[Any]] = {}
        for _, branch, own, plan in self._own(job):
            out |= branch.pictures(own, plan)
        return out

    def _said(self, job: Heads) -> dict[str, Said]:
        out: dict[str, Said] = {}
        for name, branch, own, plan in self._own(job):
            for head, rows in branch.heads_see(own, plan).items():
                shuffled = rows.scores(shuffle_features(rows.features, job.draw))
                out[f"{name}/{head}"] = Said(rows.scores(rows.features), shuffled, rows.samples, rows.labelled)
        return out

    def _gather(self, found: Mapping[str, Losses], job: Job) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {"terms": {}, "weights": {}, "watched": {}}
        for place, (name, losses) in enumerate(found.items()):
            start = f"{name}/" if len(found) > 1 else ""
            factor = job.weights[name] * (float(self.balances[place]) if job.balance else 1.0)
            for term, value in losses.terms.items():
                out["terms"][f"{start}{term}"] = value
                out["weights"][f"{start}{term}"] = factor * losses.weights[term]
            out["watched"] |= {f"{start}{key}": value for key, value in losses.watched.items()}
            out["watched"] |= {f"{start}{key}": value for key, value in self._shares(name, losses).items()}
            if len(found) > 1:
                out["watched"][f"{name}/gradient"] = self.norms[place].clone()
            if job.balance:
                out["watched"][f"{name}/balance"] = self.balances[place].clone()
        return out

    def _shares(self, branch: str, losses: Losses) -> dict[str, Tensor]:
        """Gradient of each term of a branch that is weighed, and its share of their weighted sum."""
        terms = {term: self.term_norms[at] for at, (name, term) in enumerate(self.weighed) if name == branch}
        if not terms:
            return {}
        parts = {term: losses.weights.get(term, 0.0) * norm for term, norm in terms.items()}
        whole = torch.stack(list(parts.values())).sum().clamp(min=1e-30)
        out = {f"{term}_gradient": norm.clone() for term, norm in terms.items()}
        return out | {f"{term}_share": part / whole for term, part in parts.items()}

    def _measure(self, found: Mapping[str, Losses], seen: Sequence[Seen], job: Job) -> None:
        """Norm of each branch's gradient with respect to the encoder's features, equal on all ranks."""
        features = [f for one in seen for f in one.features if f.requires_grad]
        terms = [found[name].terms.get(term) for name, term in self.weighed]
        squares: list[float] = []
        for loss in [*(losses.total for losses in found.values()), *terms]:
            with again(self):
                grads = (
                    () if loss is None else torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
                )
            used: list[Any] = [g for g in grads if g is not None]  # pyright: ignore[reportUnnecessaryComparison]
            squares.append(float(sum(g.float().square().sum() for g in used)))
        # The loss of a step is the mean over ranks, so this is its gradient, whatever their number.
        with WAITING.running(self.norms.device):
            mean = [value / dist.world_size() ** 2 for value in dist.total(squares)]
        every = torch.tensor(mean, dtype=torch.float32).sqrt().to(self.norms.device)
        norms = every[: len(found)]
        self.norms.copy_(norms)
        if terms:
            self.term_norms.copy_(every[len(found) :])
        if job.balance and bool((norms > 0).all()) and bool(norms.isfinite().all()):
            target = (norms.log().mean() - norms.log()).clamp(-math.log(MOST), math.log(MOST))
            self.balances.copy_((SLOWNESS * self.balances.log() + (1 - SLOWNESS) * target).exp())


def shuffle_features(rows: Float[Tensor, "n c"], draw: torch.Generator) -> Float[Tensor, "n c"]:
    """Permute each feature over the rows by itself: every one keeps its values, and no row's belong together."""
    out = torch.empty_like(rows)
    for feature in range(rows.shape[1]):
        out[:, feature] = rows[torch.randperm(len(rows), generator=draw).to(rows.device), feature]
    return out


Key = tuple[int, bool, int | None]


def _key(one: Pass) -> Key:
    """Passes of the same tensor, hidden alike, by the same network are one pass."""
    return id(one.images), one.teacher, None if one.visible is None else id(one.visible)


def wanted(plans: Mapping[str, Plan], *, teacher: bool) -> dict[Key, Pass]:
    """The different passes of one of the two networks; a pass has a decoder if any branch wants one."""
    merged: dict[Key, Pass] = {}
    for plan in plans.values():
        for one in plan.passes.values():
            if one.teacher == teacher:
                have = merged.get(_key(one))
                decoder = one.decoder or (have is not None and have.decoder)
                merged[_key(one)] = dataclasses.replace(one, decoder=decoder)
    return merged


def look(backbone: Backbone, passes: Mapping[Key, Pass], channels_last: bool) -> dict[Key, Seen]:
    """Show images to a network."""
    dtype = next(backbone.parameters()).dtype
    out: dict[Key, Seen] = {}
    for key, one in passes.items():
        images, visible = one.images.to(dtype), one.visible
        if backbone.dims == 2:
            images, visible = images.squeeze(2), None if visible is None else visible.squeeze(1)
        images = layout.channels_last(images) if channels_last else images
        # Copies without data, so that a gradient with respect to them is that of the branches alone.
        found = backbone.features(images) if visible is None else backbone.visible_features(images, visible)
        features = _deep([f.view_as(f) for f in found], backbone)
        flat = [f.squeeze(2) for f in features] if backbone.dims == 2 else features
        filled = flat if one.fill is None else one.fill(flat, visible)
        decoded = backbone.up(filled) if one.decoder else []
        out[key] = Seen(features, _deep(decoded, backbone))
    return out


def _deep(features: Sequence[Tensor], backbone: Backbone) -> list[Tensor]:
    return [f.unsqueeze(2) for f in features] if backbone.dims == 2 else list(features)


def costs(backbone: Backbone, plans: Mapping[str, Plan], samples: int) -> tuple[float, int, int]:
    """Operations of a step per sample, and the voxels that the encoder sees, shared and if each branch were alone."""
    flops, together, alone = 0.0, 0, 0
    for teacher in (False, True):
        for one in wanted(plans, teacher=teacher).values():
            size = tuple(one.images.shape[2:] if backbone.dims == 3 else one.images.shape[3:])
            each = backbone.flops(size) if one.decoder else backbone.encoder_flops(size)
            if one.visible is not None:
                each += backbone.visible_flops(size, float(one.visible.float().mean())) - backbone.encoder_flops(size)
            flops += each * len(one.images) * (1 if teacher else BACKWARD)
            together += one.images.numel()
        for plan in plans.values():
            alone += sum(one.images.numel() for one in wanted({"": plan}, teacher=teacher).values())
    return flops / samples, together, alone
