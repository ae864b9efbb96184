"""Supervised pretraining over several partly labelled sets (STU-Net's recipe, Huang et al. 2023, arXiv 2304.06716)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.objectives.interface import HeadRows, Objective, Pass, Plan, Seen, pointwise
from pretrain.scene import Scene
from voxscale.augment import brightness, gamma, noise
from voxscale.augment.brightness import BrightnessConfig
from voxscale.augment.gamma import GammaConfig
from voxscale.augment.noise import NoiseConfig
from voxscale.augment.resample import resample
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Losses
from voxscale.config import config, require
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.losses.marginal import marginal_logits, marginal_target
from voxscale.models.interface import Backbone
from voxscale.models.layers import initialise_layers
from voxscale.models.pointwise import Pointwise3d
from voxscale.samples import OWN, Samples
from voxscale.seed import rng
from voxscale.stream import CaseStreamConfig
from voxscale.stream.labelled import LabelledSets, read_sets

NAME = "objective.supervised"


@config
class SupervisedConfig:
    """Which labelled scans, and how they are shown. The defaults are nnU-Net's, with which STU-Net was trained.

    Attributes:
        kind: Tells objectives apart in a saved config.
        sets: Stores of labelled scans, made by `data_prep ingest`; classes of one name are one class.
        classes: Of each set, names of the classes that it annotates, with commas between, or `*` for all that its
            store knows. What a set does not annotate is background or not, for all that its labels tell.
        weights: How often each set is shown, as a multiple of its number of scans; 1 where none are given.
        heads: Decoder levels with a head, the finest first; weights fall by a half from one to the next.
        stream: How scans become samples.
        noise: Gaussian noise.
        brightness: Multiplied values.
        gamma: Gamma curve.
    """

    kind: Literal["supervised"] = "supervised"
    sets: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    heads: int = 4
    stream: CaseStreamConfig = CaseStreamConfig(
        foreground=0.33, spatial=SpatialConfig(zoom=(0.7, 1.4), rotate=(30.0, 30.0, 30.0))
    )
    noise: NoiseConfig = NoiseConfig(probability=0.1)
    brightness: BrightnessConfig = BrightnessConfig(probability=0.15)
    gamma: GammaConfig = GammaConfig(probability=0.3)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(self.heads >= 1, f"{NAME}.heads", "at least 1", self.heads)

    def read(self) -> LabelledSets:
        """See `read_sets`."""
        return read_sets(self.sets, self.classes, NAME)


def partial_loss(
    outputs: Sequence[Float[Tensor, "b k _ _ _"]],
    target: UInt8[Tensor, "b z y x"],
    annotated: Sequence[Sequence[int]],
) -> Losses:
    """Dice and cross-entropy with deep supervision, of each sample by the classes that its set annotates.

    Both are means over the voxels or the annotated classes of a sample (background left out of
    the Dice, as in nnU-Net), then over samples, so a batch may be split.

    Args:
        outputs: Logits of each head, full resolution first, of the classes of all sets.
        target: Class of each voxel among these.
        annotated: Classes that each sample's set annotates.
    """
    found: list[Tensor] = []
    for row, classes in enumerate(annotated):

        def both(logits: Tensor, labels: Tensor, classes: Sequence[int] = classes) -> Tensor:
            merged = marginal_logits(logits, classes)
            return torch.stack(dice_and_cross_entropy(merged, labels, pooled=False, background=False))

        own = marginal_target(target[row : row + 1], classes)
        found.append(deep_supervision(both, [logits[row : row + 1] for logits in outputs], own))
    dice, entropy = torch.stack(found).mean(0)
    watched = {"label_dice": _hard_dice(outputs[0].detach(), target, annotated)}
    return Losses({"dice": dice, "cross_entropy": entropy}, {"dice": 1.0, "cross_entropy": 1.0}, watched)


@torch.no_grad()
def _hard_dice(logits: Tensor, target: Tensor, annotated: Sequence[Sequence[int]]) -> Float[Tensor, ""]:
    """Mean Dice of the likeliest classes, over annotated classes that are true or guessed; 0 if there is none."""
    scores: list[Tensor] = []
    for row, classes in enumerate(annotated):
        guess = marginal_logits(logits[row : row + 1], classes).argmax(1).flatten()
        truth = marginal_target(target[row : row + 1], classes).flatten().long()
        count = len(classes) + 1
        sizes = [torch.bincount(one, minlength=count)[1:] for one in (guess, truth, truth[guess == truth])]
        total = sizes[0] + sizes[1]
        scores.append((2 * sizes[2] / total.clamp(min=1)).sum() / (total > 0).sum().clamp(min=1))
    return torch.stack(scores).mean()


class Supervised(Objective):
    """Segmentation of labelled scans as a branch: pointwise heads on the finest levels of the decoder."""

    def __init__(self, config: SupervisedConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.sets = config, config.read()
        levels = backbone.levels[: min(config.heads, backbone.decoder_levels)]
        classes = len(self.sets.classes) + 1
        self.heads = nn.ModuleList(Pointwise3d(level.channels, classes) for level in levels)

    def check(self, backbone: Backbone, patch: tuple[int, int, int]) -> None:  # noqa: ARG002
        """See `Objective.check`."""
        kinds = "one with a decoder for supervised pretraining"
        require(backbone.decoder_levels > 0, "model", kinds, type(backbone).__name__)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        initialise_layers(self, generator)

    def plan(self, scene: Scene) -> Plan:
        """Resample and augment the step's labelled patches; outside of a scan lies background."""
        assert scene.labelled is not None, "the training gives labelled samples where this objective counts"
        batch = scene.labelled.batch
        images, _, label = resample(batch, scene.patch)
        assert label is not None
        for op, name, how in (
            (noise, "noise", self.config.noise),
            (brightness, "brightness", self.config.brightness),
            (gamma, "gamma", self.config.gamma),
        ):
            images = op.apply(images, op.sample([rng(seed, name) for seed in batch.seeds], how))
        annotated = [self.sets.annotated[number] for number in scene.labelled.sets]
        return Plan({"labelled": Pass(images, decoder=True)}, (images, label[:, 0], annotated))

    def losses(
        self,
        seen: Mapping[str, Seen],
        plan: Plan,
        teacher: Objective | None,  # noqa: ARG002
        over: Samples = OWN,  # noqa: ARG002
    ) -> Losses:
        """See `partial_loss`."""
        _, label, annotated = plan.targets
        decoded = seen["labelled"].decoded
        outputs = [head(features) for head, features in zip(self.heads, decoded, strict=False)]
        return partial_loss(outputs, label, annotated)

    def heads_see(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, HeadRows]:  # noqa: ARG002
        """Classes of a voxel in eight, those of all sets."""
        maps = seen["labelled"].decoded[0][..., ::2, ::2, ::2].movedim(1, -1)
        rows = maps.flatten(0, -2)
        samples = torch.arange(len(maps), device=rows.device).repeat_interleave(len(rows) // len(maps))
        return {"classes": HeadRows(rows, samples, lambda x: pointwise(self.heads[0], x), labelled=True)}

    @torch.no_grad()
    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:
        """A labelled patch, its label, and the guess."""
        images, label, _ = plan.targets
        guess = self.heads[0](seen["labelled"].decoded[0][:1])[0].argmax(0)
        parts = {"image": images[0, 0].float(), "label": label[0], "prediction": guess.to(torch.uint8)}
        return {f"supervised_{name}": part.cpu().numpy() for name, part in parts.items()}
