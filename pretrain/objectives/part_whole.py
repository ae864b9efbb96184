"""Part-whole: embeddings that tell places apart, compose from their parts and decompose into them (Adam-v2, 2024).

Written from the paper's three branches (Hosseinzadeh Taher et al., CVPR 2024): localizability by self-distillation,
composability, decomposability. What the released code does otherwise, and why, stands in `docs/design.md`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.interface import HeadRows, Objective, Pass, Plan, Seen
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.objectives.part_whole_heads import Composer, Decomposer, DinoHead, initialise_heads
from pretrain.objectives.part_whole_views import Size, Wholes, make_wholes, parts_of, shrunk
from pretrain.scene import Scene
from voxscale.batch import Losses
from voxscale.config import require
from voxscale.losses.centre import Centre
from voxscale.losses.dino import dino_loss, entropies, sinkhorn, teacher_probabilities, teacher_temperature
from voxscale.losses.koleo import koleo_loss
from voxscale.losses.moments import How, Moments
from voxscale.losses.slot_contrast import slot_contrast
from voxscale.losses.slot_cosine import slot_cosine, slot_gap
from voxscale.losses.variance import variances
from voxscale.models.interface import Backbone
from voxscale.parts import Splits, join, legal_splits, part_size, slot_means
from voxscale.samples import OWN, Samples
from voxscale.volume import Triple

NAME = "objective.part_whole"


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What the branch knows of a step's passes.

    Attributes:
        wholes: What is seen.
        splits: Parts along z, y, x.
        progress: Share of the run that is done.
    """

    wholes: Wholes
    splits: Splits
    progress: float


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Embeddings of one network.

    Attributes:
        whole: (b, d).
        parts: (b, p, d) in the order of slots.
        views: (v, b, d) of concentric views; of the teacher the whole as its head sees it.
    """

    whole: Float[Tensor, "b d"]
    parts: Float[Tensor, "b p d"]
    views: Float[Tensor, "v b d"]

    def slots(self) -> Float[Tensor, "b s d"]:
        """The whole, the parts, the views."""
        return torch.cat([self.whole[:, None], self.parts, self.views.transpose(0, 1)], dim=1)

    def less(self, moments: Moments | None, how: How) -> "Embedded":
        """With the running moments taken out, each slot's its own; as it is if there are none."""
        if moments is None:
            return self
        count = self.parts.shape[1]
        whole, parts, views = moments.apply_to(self.slots(), how).split([1, count, len(self.views)], dim=1)
        return Embedded(whole[:, 0], parts, views.transpose(0, 1))


class PartWhole(Objective):
    """The three branches over one embedding: the mean of the deepest encoder features."""

    wants_teacher = True
    weighed = ("localise", "compose", "decompose")

    def __init__(self, config: PartWholeConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.dims, self.own_crop = config, backbone.dims, config.wider > 0
        width = backbone.levels[-1].channels
        parts = config.parts if config.splits is None else config.splits[0] * config.splits[1] * config.splits[2]
        self.head = DinoHead(width, config.hidden, config.bottleneck, config.prototypes)
        self.composer, self.decomposer = Composer(width, parts), Decomposer(width, parts)
        self.centre = Centre(config.prototypes, config.centre_momentum)
        self.own = self.theirs = None  # nor in checkpoints, where they are not asked for
        if config.inputs != "plain" or config.targets != "plain":
            self.own = Moments(1 + parts + 1 + config.local_views, width, config.moments_momentum)
            self.theirs = Moments(1 + parts + 1, width, config.moments_momentum)
        self._takes = backbone.takes
        if config.spread:
            self.weighed = (*self.weighed, "spread")

    def check(self, backbone: Backbone, patch: Size) -> None:
        """See `Objective.check`; which axes are split is known with the spacing, see `plan`."""
        if self.config.splits is None:
            self._splits(patch, (1.0, 1.0, 1.0))
        flat = backbone.dims == 3 or self.config.splits is None or self.config.splits[0] == 1
        require(flat, f"{NAME}.splits", "1 along z for images", self.config.splits)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        initialise_heads(self, generator)
        self.centre.value.zero_()
        for moments in (self.own, self.theirs):
            if moments is not None:
                moments.reset()

    def splits(self, scene: Scene) -> Splits:
        """Parts along z, y, x: the config's, or halves of the longest axes in mm of which the model takes halves."""
        return self._splits(scene.patch, scene.spacing) if self.config.splits is None else self.config.splits

    def _splits(self, patch: Size, spacing: Triple) -> Splits:
        found = {parts: legal_splits(patch, spacing, parts, self._takes) for parts in (2, 4, 8)}
        possible = [parts for parts, each in found.items() if each is not None]
        require(len(possible) > 0, "patch", "such that halves of it are images that the model takes", patch)
        splits, parts = found[self.config.parts], self.config.parts
        told = f"at most {max(possible)} of a patch of {patch}, as parts must be images that the model takes"
        require(splits is not None, f"{NAME}.parts", told, parts, possible)
        assert splits is not None
        return splits

    def plan(self, scene: Scene) -> Plan:
        """Choose wholes; images of one size travel together.

        Raises:
            ConfigError: If the parts do not tile the patch, or are no images that the backbone takes.
        """
        splits = self.splits(scene)
        small = part_size(scene.patch, splits)
        told = f"such that a part, {small}, is an image that the model takes"
        require(self._takes(small), f"{NAME}.splits", told, splits)
        wholes = make_wholes(scene, self.config, splits, small)
        if self.config.part_views == "crops":
            own, theirs = parts_of(wholes.student, splits), parts_of(wholes.teacher, splits)
        else:
            own, theirs = shrunk(wholes.student, splits), shrunk(wholes.teacher, splits)
        passes = {
            "large": Pass(torch.cat([wholes.student, wholes.views[0]])),
            "small": Pass(torch.cat([own, *wholes.views[1:]])),
            "teacher_large": Pass(wholes.teacher, teacher=True),
            "teacher_small": Pass(theirs, teacher=True),
        }
        return Plan(passes, Targets(wholes, splits, scene.progress))

    def _embed(self, large: Tensor, small: Tensor, targets: Targets) -> Embedded:
        """Sort the features of a network's two passes."""
        count, order = len(targets.wholes.student), targets.wholes.order
        wide, narrow = _mean(large), _mean(small)
        if self.config.part_views == "crops":
            whole, parts = wide[:count], narrow[: count * order.shape[1]].view(count, order.shape[1], -1)
            rest = narrow[count * order.shape[1] :]
        else:
            whole, parts, rest = narrow[:count], slot_means(large[:count].float(), targets.splits), narrow[count:]
        parts = parts.gather(1, order[:, :, None].expand_as(parts))
        return Embedded(whole, parts, torch.cat([wide[count:], rest]).unflatten(0, (-1, count)))

    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: Objective | None, over: Samples = OWN) -> Losses:
        """All three terms; centre and moments follow while training.

        Watched are `embedding_std` (of unit vectors, 1 if they point everywhere, 0 if all are one), `head_entropy`
        and `usage_entropy` (see `entropies`), `air_parts` (share of parts that do not count), `level`,
        `whole_mm` (the wholes' mean side), the cosines `compose_cosine` and `decompose_cosine`, and by how much they
        are above those with other samples, `compose_gap` and `decompose_gap`: 0 if nothing is told apart.
        """
        assert isinstance(teacher, PartWhole)
        targets: Targets = plan.targets
        config, counted = self.config, targets.wholes.counted
        own = self._embed(seen["large"].features[-1], seen["small"].features[-1], targets)
        with torch.no_grad():
            large = seen["teacher_large"].features[-1]
            theirs = self._embed(large, seen["teacher_small"].features[-1], targets)
            theirs = dataclasses.replace(theirs, views=_mean(large)[None])
        if self.training:  # before they are used: then not even the first step knows less than its own batch
            self._take_in(own, theirs, counted, over)
        wanted, aims, there = self._told(teacher, theirs, targets, over)
        moves = targets.progress >= config.frozen
        given = own.less(self.own, config.inputs)
        said = self.head(given.views.flatten(0, 1), moves).unflatten(0, given.views.shape[:2])
        full = there.float().mean(dim=1, keepdim=True) >= 0.5  # of a whole that is mostly air nothing is asked
        composed = self.composer(given.parts * counted.to(given.parts)[:, :, None])[:, None]
        pairs = {
            "compose": (composed, aims.whole[:, None], full),
            "decompose": (self.decomposer(given.whole), aims.parts, there),
        }
        terms = {"localise": dino_loss(said, wanted, config.student_temperature)}
        terms |= {name: self._compare(*pair, over) for name, pair in pairs.items()}
        if config.spread:
            terms["spread"] = self._spread(own, counted, over)
        weights = config.weights(targets.progress)
        watched = self._watch(pairs, own, wanted, targets, over)
        return Losses({name: terms[name] for name in weights}, weights, watched)

    def _take_in(self, own: Embedded, theirs: Embedded, counted: Tensor, over: Samples) -> None:
        """Let both networks' moments follow; air is left out."""
        some = torch.ones(len(counted), 1, dtype=torch.bool, device=counted.device)
        for moments, found in ((self.own, own), (self.theirs, theirs)):
            if moments is not None:
                every = torch.cat([some, counted, some.expand(-1, len(found.views))], dim=1)
                moments.update(found.slots(), every, over)

    @torch.no_grad()
    def _told(
        self, teacher: "PartWhole", theirs: Embedded, targets: Targets, over: Samples
    ) -> tuple[Tensor, Embedded, Tensor]:
        """Prototypes and embeddings that are to be told, and which of these count; the centre follows."""
        config, counted = self.config, targets.wholes.counted
        logits = teacher.head(theirs.less(self.theirs, config.inputs).views[0]).float()
        wanted, aims = self._wanted(logits, targets.progress, over), theirs.less(self.theirs, config.targets)
        if self.training:
            self.centre.update(logits, over)
        if config.truth == "own":
            return wanted, aims, counted
        aims = Embedded(over.rolled(aims.whole), over.rolled(aims.parts), aims.views)
        return over.rolled(wanted), aims, counted & over.rolled(counted)

    def _wanted(self, logits: Tensor, progress: float, over: Samples) -> Tensor:
        """The teacher's distribution over prototypes."""
        config = self.config
        now = teacher_temperature(*config.teacher_temperature, config.temperature_warmup, progress)
        if config.centring == "sinkhorn":
            return sinkhorn(logits, now, over=over)
        return teacher_probabilities(logits, self.centre.value, now)

    def _compare(self, predicted: Tensor, target: Tensor, counted: Tensor, over: Samples) -> Tensor:
        if self.config.match == "contrast":
            return slot_contrast(predicted, target, counted, self.config.match_temperature, over)
        return slot_cosine(predicted, target, counted, over)

    def _spread(self, own: Embedded, counted: Tensor, over: Samples) -> Tensor:
        """How close embeddings lie to those of other samples in the same slot; the whole is a slot, too."""
        wholes = koleo_loss(own.whole[:, None], torch.ones_like(counted[:, :1]), over=over)
        return (wholes + koleo_loss(own.parts, counted, over=over)) / 2

    def heads_see(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, HeadRows]:
        """Prototypes as the student says them of all views, at its temperature."""
        targets: Targets = plan.targets
        own = self._embed(seen["large"].features[-1], seen["small"].features[-1], targets)
        views = own.less(self.own, self.config.inputs).views
        samples = torch.arange(views.shape[1], device=views.device).repeat(len(views))

        def scores(rows: Tensor) -> Tensor:
            return self.head(rows).float() / self.config.student_temperature

        return {"prototypes": HeadRows(views.flatten(0, 1), samples, scores)}

    @torch.no_grad()
    def _watch(
        self,
        pairs: Mapping[str, tuple[Tensor, Tensor, Tensor]],
        own: Embedded,
        wanted: Tensor,
        targets: Targets,
        over: Samples,
    ) -> dict[str, Tensor]:
        unit = F.normalize(own.whole.detach().float(), dim=1)
        entropy, usage = entropies(wanted, over)
        return {
            "embedding_std": variances(unit, over, unbiased=False).sum().sqrt(),
            "head_entropy": entropy,
            "usage_entropy": usage,
            "air_parts": 1 - targets.wholes.counted.float().mean(),
            "level": torch.tensor(targets.wholes.levels, device=unit.device).float().mean(),
            "whole_mm": targets.wholes.sides.mean(),
            **{f"{name}_cosine": 1 - slot_cosine(*pair, over) / 2 for name, pair in pairs.items()},
            **{f"{name}_gap": slot_gap(*pair, over) for name, pair in pairs.items()},
        }

    @torch.no_grad()
    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """The whole, its parts drawn apart, and those that count as air."""
        targets: Targets = plan.targets
        wholes, splits = targets.wholes, targets.splits
        parts = parts_of(wholes.student[:1], splits)[None]
        apart = parts.clone()
        for axis in range(3, 6):
            if splits[axis - 3] > 1:
                apart.select(axis, 0).zero_()
                apart.select(axis, parts.shape[axis] - 1).zero_()
        empty = ~wholes.counted[0].gather(0, wholes.order[0].argsort())
        air = torch.ones_like(parts) * empty.view(1, -1, 1, 1, 1, 1)
        arrays = {"whole": wholes.student[:1], "parts": join(apart, splits), "air": join(air, splits)}
        return {f"part_whole_{name}": value[0, 0].float().cpu().numpy() for name, value in arrays.items()}


def _mean(features: Float[Tensor, "n d z y x"]) -> Float[Tensor, "n d"]:
    return features.flatten(2).float().mean(dim=2)
