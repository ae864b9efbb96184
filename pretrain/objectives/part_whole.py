"""Part-whole: embeddings that tell places apart, compose from their parts and decompose into them (Adam-v2, 2024).

Written from the paper's three branches (Hosseinzadeh Taher et al., CVPR 2024): localizability by self-distillation,
composability, decomposability. What the released code does otherwise, and why, stands in `docs/design.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.objectives.part_whole_heads import Composer, Decomposer, DinoHead, initialise_heads
from pretrain.objectives.part_whole_views import Size, Wholes, make_wholes, parts_of, shrunk
from pretrain.scene import Scene
from voxscale.batch import Losses
from voxscale.config import require
from voxscale.losses.centre import Centre
from voxscale.losses.dino import dino_loss, entropies, teacher_probabilities, teacher_temperature
from voxscale.losses.slot_cosine import slot_cosine
from voxscale.models.interface import Backbone
from voxscale.parts import Splits, join, part_size, slot_means, split_longest

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
        views: (v, b, d) of concentric views; none of the teacher.
    """

    whole: Float[Tensor, "b d"]
    parts: Float[Tensor, "b p d"]
    views: Float[Tensor, "v b d"]


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
        self._legal_size = backbone.legal_size

    def check(self, backbone: Backbone, patch: Size) -> None:
        """See `Objective.check`; which axes are split is known with the spacing, see `plan`."""
        able, parts = sum(n > 1 for n in patch), self.config.parts
        enough = self.config.splits is not None or 2**able >= parts
        require(enough, f"{NAME}.parts", f"at most {2**able} of {able} axes", parts)
        flat = backbone.dims == 3 or self.config.splits is None or self.config.splits[0] == 1
        require(flat, f"{NAME}.splits", "1 along z for images", self.config.splits)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        initialise_heads(self, generator)
        self.centre.value.zero_()

    def splits(self, scene: Scene) -> Splits:
        """Parts along z, y, x: the longest axes in mm are halved unless the config says otherwise."""
        if self.config.splits is not None:
            return self.config.splits
        extent = [n * mm if n > 1 else 0.0 for n, mm in zip(scene.patch, scene.spacing, strict=True)]
        return split_longest(extent, self.config.parts)

    def plan(self, scene: Scene) -> Plan:
        """Choose wholes; images of one size travel together.

        Raises:
            ConfigError: If the parts do not tile the patch, or are no images that the backbone takes.
        """
        splits = self.splits(scene)
        small = part_size(scene.patch, splits)
        legal = self._legal_size(small[3 - self.dims :])
        seen = legal == small[3 - self.dims :]
        require(
            seen, f"{NAME}.splits", f"such that a part, {small}, is an image that the model takes ({legal})", splits
        )
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

    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: Objective | None) -> Losses:
        """All three terms; the centre follows the teacher while training.

        Watched are `embedding_std` (of unit vectors, 1 if they point everywhere, 0 if all are one), `head_entropy`
        and `usage_entropy` (see `entropies`), `air_parts` (share of parts that do not count), `level`,
        `whole_mm` (the wholes' mean side), and the cosines `compose_cosine` and `decompose_cosine`.
        """
        assert isinstance(teacher, PartWhole)
        targets: Targets = plan.targets
        config, counted = self.config, targets.wholes.counted
        own = self._embed(seen["large"].features[-1], seen["small"].features[-1], targets)
        with torch.no_grad():
            large = seen["teacher_large"].features[-1]
            theirs = self._embed(large, seen["teacher_small"].features[-1], targets)
            logits = teacher.head(_mean(large)).float()
            now = teacher_temperature(*config.teacher_temperature, config.temperature_warmup, targets.progress)
            wanted = teacher_probabilities(logits, self.centre.value, now)
        moves = targets.progress >= config.frozen
        said = self.head(own.views.flatten(0, 1), moves).unflatten(0, own.views.shape[:2])
        full = counted.float().mean(dim=1, keepdim=True) >= 0.5  # of a whole that is mostly air nothing is asked
        filled = own.parts * counted.to(own.parts)[:, :, None]
        terms = {
            "localise": dino_loss(said, wanted, config.student_temperature),
            "compose": slot_cosine(self.composer(filled)[:, None], theirs.whole[:, None], full),
            "decompose": slot_cosine(self.decomposer(own.whole), theirs.parts, counted),
        }
        if self.training:
            self.centre.update(logits)
        weights = config.weights(targets.progress)
        watched = self._watch(terms, own, wanted, targets)
        return Losses({name: terms[name] for name in weights}, weights, watched)

    def logits(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, Tensor]:
        """Prototypes as the student says them of all views, at its temperature."""
        targets: Targets = plan.targets
        own = self._embed(seen["large"].features[-1], seen["small"].features[-1], targets)
        return {"prototypes": self.head(own.views.flatten(0, 1)).float() / self.config.student_temperature}

    @torch.no_grad()
    def _watch(self, terms: Mapping[str, Tensor], own: Embedded, wanted: Tensor, targets: Targets) -> dict[str, Tensor]:
        unit = F.normalize(own.whole.detach().float(), dim=1)
        entropy, usage = entropies(wanted)
        return {
            "embedding_std": unit.std(dim=0, unbiased=False).square().sum().sqrt(),
            "head_entropy": entropy,
            "usage_entropy": usage,
            "air_parts": 1 - targets.wholes.counted.float().mean(),
            "level": torch.tensor(targets.wholes.levels, device=unit.device).float().mean(),
            "whole_mm": targets.wholes.sides.mean(),
            "compose_cosine": 1 - terms["compose"].detach() / 2,
            "decompose_cosine": 1 - terms["decompose"].detach() / 2,
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
