"""Volume Fusion: two crops are blended block by block, the network tells by how much.

Two algorithms were published under this name, and both are here:

* The journal version, "VolF" (Wang et al., IEEE TIP 34, 2025; PyMIC since 2024): layout `grid`,
  pairing `within`, K = 4, ratio 0.7, blocks of 8 to 32 voxels. These are the defaults. Its demo for 64x128x128
  crops has `block_min` (5, 8, 8) and `block_max` (20, 32, 32).
* The preprint, "VF" (MIS-FM, arXiv 2306.16925, 2023): layout `boxes`, pairing `across`, K = 4, 10 to 40 boxes,
  for 64x128x128 crops with `block_min` 8 and `block_max` (40, 80, 80).

Layout and pairing may be combined freely; the other two combinations are not published.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from pretrain.objectives.fusion_config import Size, VolumeFusionConfig, check
from pretrain.objectives.fusion_labels import draw_grid, draw_grids, sample_labels
from pretrain.objectives.interface import HeadRows, Objective, Pass, Plan, Seen, pointwise
from pretrain.scene import Scene
from voxscale.batch import Losses, Views
from voxscale.config import require
from voxscale.errors import DataError
from voxscale.kernel.fusion import fuse_grids
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.losses.earth_mover import earth_mover_loss
from voxscale.models.interface import Backbone
from voxscale.models.layers import initialise_layers
from voxscale.models.pointwise import Pointwise3d
from voxscale.samples import OWN, Samples
from voxscale.seed import rng

Network = Callable[[Tensor], Tensor | Sequence[Tensor]]

IGNORED = 255
"""Mark of a voxel that does not count, above every class (carried through to the coarser heads)."""


@functools.cache
def gpu_kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The function of `pretrain.objectives.fusion_triton`, where torch came with a compiler for GPUs."""
    try:
        from pretrain.objectives import fusion_triton
    except ImportError:
        return None
    return fusion_triton.paint_and_fuse


def fuse(
    background: Float[Tensor, "b 1 z y x"],
    foreground: Float[Tensor, "b 1 z y x"],
    label: UInt8[Tensor, "b 1 z y x"],
    levels: int,
) -> Float[Tensor, "b 1 z y x"]:
    """Blend two crops: `background + label / levels * (foreground - background)`."""
    return torch.lerp(background, foreground, label.to(background.dtype).div_(levels))


def draw_and_fuse(
    background: Float[Tensor, "b 1 z y x"],
    foreground: Float[Tensor, "b 1 z y x"],
    seeds: Sequence[int],
    config: VolumeFusionConfig,
) -> tuple[UInt8[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]]:
    """Draw a label for each pair and blend: `sample_labels` and `fuse`, grids in one pass, on CPUs with the same bits.

    Raises:
        ConfigError: As `sample_labels` does.
    """
    z, y, x = background.shape[2:]
    if config.layout == "grid" and background.device.type == "cpu":
        check(config, (z, y, x))
        grids = [draw_grid(rng(seed, "fusion"), (z, y, x), config) for seed in seeds]
        done = fuse_grids(background, foreground, grids, config.levels)
        if done is not None:
            return done
    if config.layout == "grid" and background.is_cuda and (on_gpu := gpu_kernel()) is not None:
        check(config, (z, y, x))
        draws = [rng(seed, "fusion") for seed in seeds]
        table, places = draw_grids(draws, (z, y, x), config, background.device)
        return on_gpu(background, foreground, table, tuple(place.int() for place in places), config.levels)
    label = sample_labels(seeds, (z, y, x), config, background.device)
    return label, fuse(background, foreground, label, config.levels)


def loss(
    outputs: Tensor | Sequence[Tensor],
    label: UInt8[Tensor, "b 1 z y x"],
    ignored: Bool[Tensor, "b 1 z y x"] | None = None,
    ordinal_weight: float = 0.0,
    over: Samples = OWN,
) -> Losses:
    """Half soft Dice, pooled over the batch with class 0 included, half cross-entropy.

    Args:
        outputs: Logits (b, K + 1, z, y, x), or those of each head, full resolution first.
        label: Class of each voxel.
        ignored: True where a voxel does not count.
        ordinal_weight: Weight of the squared earth mover's distance; with 0 it is not computed.
        over: Whose samples are the batch.

    Returns:
        Terms `dice`, `ce` and, if it counts, `ordinal`; watched are `pretext_dice`, the Dice of the most likely
        classes (close to 1 means that the pretext is solved and teaches no more), and `pretext_accuracy`.
    """
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    target = (label if ignored is None else label.masked_fill(ignored, IGNORED)).squeeze(1)
    dice, ce = deep_supervision(functools.partial(_dice_and_ce, over=over), heads, target)
    terms, weights = {"dice": dice, "ce": ce}, {"dice": 0.5, "ce": 0.5}
    if ordinal_weight > 0:
        terms["ordinal"] = deep_supervision(functools.partial(_ordinal, over=over), heads, target)
        weights["ordinal"] = ordinal_weight
    return Losses(terms=terms, weights=weights, watched=_watch(heads[0].detach(), target, over))


def _split(target: UInt8[Tensor, "b z y x"]) -> tuple[UInt8[Tensor, "b z y x"], Bool[Tensor, "b z y x"]]:
    """Turn marked voxels into class 0 and a mask that leaves them out."""
    counted = target != IGNORED
    return target * counted, counted


def _dice_and_ce(
    logits: Float[Tensor, "b k z y x"], target: UInt8[Tensor, "b z y x"], over: Samples
) -> Float[Tensor, "2"]:
    labels, counted = _split(target)
    return torch.stack(dice_and_cross_entropy(logits, labels, pooled=True, background=True, mask=counted, over=over))


def _ordinal(logits: Float[Tensor, "b k z y x"], target: UInt8[Tensor, "b z y x"], over: Samples) -> Float[Tensor, ""]:
    labels, counted = _split(target)
    return earth_mover_loss(logits, labels, mask=counted, over=over)


@torch.no_grad()
def _watch(logits: Float[Tensor, "b k z y x"], target: UInt8[Tensor, "b z y x"], over: Samples) -> dict[str, Tensor]:
    """Dice (mean of the classes that are true or predicted somewhere) and accuracy of the likeliest class."""
    labels, counted = _split(target)
    classes = logits.shape[1]
    pairs = (labels.long() * classes + likeliest(logits)).flatten()
    confusion = torch.zeros(classes**2, dtype=torch.long, device=logits.device)
    (confusion,) = over.total(confusion.scatter_add(0, pairs, counted.flatten().long()).view(classes, classes))
    hits, size = confusion.diagonal(), confusion.sum(dim=0) + confusion.sum(dim=1)
    dice = (2 * hits / size.clamp(min=1)).sum() / (size > 0).sum().clamp(min=1)
    return {"pretext_dice": dice, "pretext_accuracy": hits.sum() / confusion.sum().clamp(min=1)}


def likeliest(logits: Float[Tensor, "b k z y x"]) -> UInt8[Tensor, "b z y x"]:
    """Class of the largest logit, the first of several: torch's `argmax`, which takes long over contiguous logits."""
    best, found = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.uint8)
    for k in range(1, logits.shape[1]):
        found.masked_fill_(logits[:, k] > best, k)
        best = torch.maximum(best, logits[:, k])
    return found


def fuse_views(
    views: Views, config: VolumeFusionConfig, over: Samples = OWN
) -> tuple[
    Float[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"], UInt8[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]
]:
    """Pair the crops, draw a label for each pair, and blend.

    Args:
        views: The crops of this process.
        config: Layout and pairing.
        over: Among whose samples the pairs are.

    Returns:
        Background, foreground, label and fused image, each (b, 1, z, y, x).

    Raises:
        ConfigError: If pairing is `across` and there is no other sample to pair with.
        DataError: If the views hold another number of crops per sample.
    """
    samples, crops = views.images.shape[:2]
    if crops != config.views_per_sample:
        raise DataError(f"views must hold {config.views_per_sample} crops per sample, not {crops}", "bad_batch")
    if config.pairing == "across":
        require(samples > 1, "objective.pairing", "'within' for a batch of one sample", config.pairing)
    background, foreground = _pair(views.images, over)
    label, fused = draw_and_fuse(background, foreground, views.seeds, config)
    return background, foreground, label, fused


def _pair(
    crops: Shaped[Tensor, "b v 1 z y x"], over: Samples
) -> tuple[Shaped[Tensor, "b 1 z y x"], Shaped[Tensor, "b 1 z y x"]]:
    """Each sample's own two crops, or its only crop and that of the sample before it."""
    first = crops[:, 0]
    return first, crops[:, 1] if crops.shape[1] == 2 else over.rolled(first)


def volume_fusion(network: Network, views: Views, config: VolumeFusionConfig) -> Losses:
    """Fuse the crops of each sample, let the network classify every voxel, and measure how well it did.

    Args:
        network: From images (b, 1, z, y, x) to logits with `config.classes` channels, see `loss`.
        views: `config.views_per_sample` crops per sample.
        config: Layout and pairing.

    Raises:
        ConfigError: As `fuse_views` does.
        DataError: As `fuse_views` does.
    """
    background, foreground, label, fused = fuse_views(views, config)
    ignored = uncounted(views, background, foreground, label, config)
    return loss(network(fused), label, ignored, config.ordinal_weight)


def uncounted(
    views: Views,
    background: Float[Tensor, "b 1 z y x"],
    foreground: Float[Tensor, "b 1 z y x"],
    label: UInt8[Tensor, "b 1 z y x"],
    config: VolumeFusionConfig,
    over: Samples = OWN,
) -> Bool[Tensor, "b 1 z y x"]:
    """Voxels that do not count: see `_nowhere` and `VolumeFusionConfig.least_difference`, and all of equal crops.

    Two crops are equal where both are air that clipping made one value. Nothing can be told of them, and a network
    that says zeros of them at first multiplies their gradient in each of its norms.
    """
    equal = (foreground == background).flatten(1).all(dim=1)
    found = _nowhere(views, label, config.levels, over) | equal.view(-1, 1, 1, 1, 1)
    if config.least_difference > 0:
        found = found | ((foreground - background).abs() < config.least_difference)
    return found


def _nowhere(views: Views, label: UInt8[Tensor, "b 1 z y x"], levels: int, over: Samples) -> Bool[Tensor, "b 1 z y x"]:
    """Voxels at which a crop shows what lies outside of its scan or was blanked; they do not count.

    Where only one of the crops shows, at class 0 or K, the other may be anything. The published versions never see
    such voxels: they crop inside.
    """
    background, foreground = _pair(views.inside, over)
    return (~background & (label < levels)) | (~foreground & (label > 0))


class VolumeFusion(Objective):
    """Volume Fusion as a branch: a pointwise head on the finest features of the decoder."""

    def __init__(self, config: VolumeFusionConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.views_per_sample = config, config.views_per_sample
        self.head = Pointwise3d(backbone.levels[0].channels, config.classes)

    def check(self, backbone: Backbone, patch: Size) -> None:
        """See `Objective.check`."""
        require(backbone.decoder_levels > 0, "model", "one with a decoder for Volume Fusion", type(backbone).__name__)
        check(self.config, patch)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        initialise_layers(self, generator)

    def plan(self, scene: Scene) -> Plan:
        """Fuse the crops."""
        views = scene.all_crops(self.views_per_sample)
        parts = fuse_views(views, self.config, scene.over)
        background, foreground, label, fused = parts
        ignored = uncounted(views, background, foreground, label, self.config, scene.over)
        return Plan({"fused": Pass(fused, decoder=True)}, (*parts, ignored))

    def losses(
        self,
        seen: Mapping[str, Seen],
        plan: Plan,
        teacher: Objective | None,  # noqa: ARG002
        over: Samples = OWN,
    ) -> Losses:
        """See `loss`."""
        *_, label, _, ignored = plan.targets
        return loss(self.head(seen["fused"].decoded[0]), label, ignored, self.config.ordinal_weight, over)

    def heads_see(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, HeadRows]:
        """Levels of a voxel in eight, outside of the scan left out."""
        counted = ~plan.targets[4][:, 0, ::2, ::2, ::2]
        rows = seen["fused"].decoded[0][..., ::2, ::2, ::2].movedim(1, -1)[counted]
        return {"levels": HeadRows(rows, counted.nonzero()[:, 0], lambda x: pointwise(self.head, x))}

    @torch.no_grad()
    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:
        """Both crops, the fused image, its label and the guess."""
        names = ("background", "foreground", "label", "fused")
        parts = dict(zip(names, plan.targets, strict=False))
        arrays = {name: part[0, 0].float().cpu().numpy() for name, part in parts.items()}
        guess = self.head(seen["fused"].decoded[0][:1])[0].float().argmax(0)
        return arrays | {"prediction": guess.cpu().numpy()}
