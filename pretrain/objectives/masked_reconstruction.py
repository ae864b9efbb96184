"""Masked reconstruction: blocks of a crop are hidden, and their voxels told from the rest.

For tokens He et al. 2022 (MAE, arXiv 2111.06377), for convolutions Tian et al. 2023 (SparK, arXiv 2301.03580).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.scene import Scene
from voxscale.augment import hidden_blocks
from voxscale.batch import Losses
from voxscale.config import config, require
from voxscale.losses.masked_reconstruction import masked_error, normalise_blocks
from voxscale.models.interface import Backbone
from voxscale.models.layers import initialise_layers
from voxscale.models.light_decoder import MaskTokens, cell, light_decoder
from voxscale.models.pointwise import Pointwise3d
from voxscale.models.sparse import spread
from voxscale.samples import OWN, Samples
from voxscale.seed import rng

Size = tuple[int, int, int]


@config
class MaskedReconstructionConfig:
    """What is hidden, what is told, and by what.

    Attributes:
        kind: Tells objectives apart in a saved config.
        ratio: Share of blocks that are hidden.
        block: Voxels of a block along z, y, x, multiples of the backbone's coarsest stride; None for that stride.
        decoder: `backbone`: its own, with mask tokens in the hidden places of all skips, so that it is trained too;
            `light`: a small one that is thrown away; `auto`: its own if it has one.
        width: Channels of the light decoder.
        depth: Transformer blocks of the light decoder for tokens.
        heads: Attention heads of these.
        normalise: Whether each block's mean and deviation are taken out of what is to be told.
        loss: Squared or absolute error.
        truth: What is to be told: a sample's own hidden voxels, or as a control those of the sample before it in the
            batch, from which nothing but means can be learnt.
    """

    kind: Literal["masked_reconstruction"] = "masked_reconstruction"
    ratio: float = 0.6
    block: Size | None = None
    decoder: Literal["auto", "backbone", "light"] = "auto"
    width: int = 64
    depth: int = 2
    heads: int = 4
    normalise: bool = False
    loss: Literal["l1", "l2"] = "l2"
    truth: Literal["own", "another"] = "own"

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        name = "objective.masked_reconstruction"
        require(0 < self.ratio < 1, f"{name}.ratio", "between 0 and 1", self.ratio)
        require(self.block is None or min(self.block) >= 1, f"{name}.block", "at least 1 voxel", self.block)
        for part in ("width", "depth", "heads"):
            require(getattr(self, part) >= 1, f"{name}.{part}", "at least 1", getattr(self, part))


class MaskedReconstruction(Objective):
    """Masked reconstruction as a branch."""

    def __init__(self, config: MaskedReconstructionConfig, backbone: Backbone) -> None:
        super().__init__()
        own = config.decoder == "backbone" or (config.decoder == "auto" and backbone.decoder_levels > 0)
        self.config, self.block = config, config.block or cell(backbone.levels[-1])
        self.fill = MaskTokens([level.channels for level in backbone.levels]) if own else None
        self.head = Pointwise3d(backbone.levels[0].channels, 1) if own else None
        self.decoder = None if own else light_decoder(backbone, config.width, config.depth, config.heads)

    def check(self, backbone: Backbone, patch: Size) -> None:
        """See `Objective.check`."""
        name, step = "objective.masked_reconstruction.block", cell(backbone.levels[-1])
        kinds = "one that can leave out parts of an image: STU-Net, nnU-Net, FMU-Net, ResNet or ViT"
        require(backbone.sees_parts, "model", kinds, type(backbone).__name__)
        has = self.fill is None or backbone.decoder_levels > 0
        require(has, "objective.masked_reconstruction.decoder", "'light' for a model without decoder", "backbone")
        whole = all(b % s == 0 for b, s in zip(self.block, step, strict=True))
        require(whole, name, f"a multiple of the model's coarsest stride, {step}", self.block)
        fits = all(n % b == 0 for n, b in zip(patch, self.block, strict=True))
        require(fits, name, f"a divisor of the patch, {patch}", self.block)
        blocks = self._grid(patch)
        count = blocks[0] * blocks[1] * blocks[2]
        require(count > 1, name, f"smaller than the patch, {patch}", self.block)
        # A norm over a single place is 0 whatever is there.
        each = [b // s for b, s in zip(self.block, step, strict=True)]
        seen = (count - hidden_blocks.hidden_count(blocks, self.config.ratio)) * each[0] * each[1] * each[2]
        ratio = self.config.ratio
        require(seen > 1, "objective.masked_reconstruction.ratio", f"less for {count} blocks in all", ratio)

    def _grid(self, patch: Sequence[int]) -> Size:
        z, y, x = (n // b for n, b in zip(patch, self.block, strict=True))
        return z, y, x

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        if self.decoder is not None:
            self.decoder.initialise(generator)
        if self.head is not None and self.fill is not None:
            initialise_layers(self.head, generator, he=False)  # so small that the first guess is near 0
            self.fill.initialise(generator)

    def plan(self, scene: Scene) -> Plan:
        """Hide blocks of the first crop; what lies outside of the scan or was blanked is not asked for."""
        view = scene.crop(0)
        drawn = hidden_blocks.sample(
            [rng(seed, "hidden") for seed in scene.seeds], self._grid(scene.patch), self.config.ratio
        )
        visible = drawn.to(view.images.device)
        shown = spread(visible, view.images.shape[2:]).unsqueeze(1)
        one = Pass(view.images, decoder=self.fill is not None, visible=visible, fill=self.fill)
        images, inside = view.images, view.inside
        if self.config.truth == "another":
            name = "objective.masked_reconstruction.truth"
            require(len(images) > 1, name, "'own' where a rank has one sample at a time", self.config.truth)
            images, inside = scene.over.rolled(images), scene.over.rolled(inside)
        return Plan({"visible": one}, (images, inside, shown, visible))

    def losses(
        self,
        seen: Mapping[str, Seen],
        plan: Plan,
        teacher: Objective | None,  # noqa: ARG002
        over: Samples = OWN,
    ) -> Losses:
        """Error of hidden voxels; watched is the share of their variance that is explained."""
        images, inside, shown, visible = plan.targets
        counted = inside & ~shown
        truth = normalise_blocks(images, inside, self.block)[0] if self.config.normalise else images.float()
        guess = self._guess(seen["visible"], visible)
        error = masked_error(guess, truth, counted, self.config.loss)
        return Losses({"error": error}, {"error": 1.0}, {"explained": explained(guess.detach(), truth, counted, over)})

    def _guess(self, seen: Seen, visible: Bool[Tensor, "b z y x"]) -> Float[Tensor, "b 1 z y x"]:
        if self.decoder is not None:
            return self.decoder(seen.features, visible)
        assert self.head is not None
        return self.head(seen.decoded[0])

    @torch.no_grad()
    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:
        """The crop, what is visible of it, and the crop with its hidden blocks as they are told."""
        images, inside, shown, visible = plan.targets
        guess = self._guess(seen["visible"], visible).float()
        if self.config.normalise:
            _, mean, deviation = normalise_blocks(images, inside, self.block)
            guess = guess * deviation + mean
        told = torch.where(shown, images, guess * inside)
        parts = {"whole": images, "visible": images * shown, "told": told}
        return {f"masked_{name}": part[0, 0].float().cpu().numpy() for name, part in parts.items()}


@torch.no_grad()
def explained(
    guess: Float[Tensor, "b 1 z y x"],
    truth: Float[Tensor, "b 1 z y x"],
    counted: Bool[Tensor, "b 1 z y x"],
    over: Samples = OWN,
) -> Float[Tensor, ""]:
    """1 less the squared error as a share of the counted voxels' variance: 0 for their mean, 1 for the truth."""
    total, count = over.total(torch.where(counted, truth, 0.0).sum(), counted.sum())
    mean = total / count.clamp(min=1)
    squares = torch.where(counted, (truth - mean).square(), 0.0).sum()
    error, variance = over.total(torch.where(counted, (guess.float() - truth).square(), 0.0).sum(), squares)
    return 1 - error / variance.clamp(min=1e-12)
