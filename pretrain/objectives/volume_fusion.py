"""Volume Fusion: two crops are blended block by block, the network tells by how much.

Two algorithms were published under this name, and both are here:

* The journal version, "VolF" (Wang et al., IEEE TIP 34, 2025; PyMIC since 2024): layout `grid`,
  pairing `within`, K = 4, ratio 0.7, blocks of 8 to 32 voxels. These are the defaults. Its demo for 64x128x128
  crops has `block_min` (5, 8, 8) and `block_max` (20, 32, 32).
* The preprint, "VF" (MIS-FM, arXiv 2306.16925, 2023): layout `boxes`, pairing `across`, K = 4, 10 to 40 boxes,
  for 64x128x128 crops with `block_min` 8 and `block_max` (40, 80, 80).

Layout and pairing may be combined freely; the other two combinations are not published.
One file beyond the usual length: painting, fusion, loss and branch are read together.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.scene import Scene
from voxscale.batch import Losses, Views
from voxscale.config import config, require
from voxscale.errors import DataError
from voxscale.kernel.fusion import fuse_grids
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.losses.earth_mover import earth_mover_loss
from voxscale.models.interface import Backbone
from voxscale.models.layers import initialise_layers
from voxscale.seed import rng

Size = tuple[int, int, int]
Network = Callable[[Tensor], Tensor | Sequence[Tensor]]

IGNORED = 255
"""Mark of a voxel that does not count, above every class (carried through to the coarser heads)."""


@config
class VolumeFusionConfig:
    """Which blocks are blended, and with what.

    Attributes:
        kind: Tells objectives apart in a saved config.
        layout: `grid`: a share of the cells of one regular grid per sample (2024 and later);
            `boxes`: boxes of random size and place, later ones painted over earlier ones (2023).
        pairing: `within`: two crops of one scan (2024 and later); `across`: the sample before in the batch
            is the foreground of each sample (2023), so that what is seen depends on the local batch.
        levels: K; class k is blended with coefficient k / K, class 0 is pure background.
        ratio: Share of the grid's whole cells that are blended (`grid` only).
        block_min: Least side of a block in voxels, one number or one per axis (z, y, x).
        block_max: Greatest side of a block in voxels, one number or one per axis (z, y, x).
        boxes: Least and greatest number of boxes (`boxes` only).
        ordinal_weight: Weight of the earth mover's distance between true and guessed level, beside half Dice and
            half cross-entropy, which take a guess that is off by one level for as wrong as any other; 0 as published.
    """

    kind: Literal["volume_fusion"] = "volume_fusion"
    layout: Literal["grid", "boxes"] = "grid"
    pairing: Literal["within", "across"] = "within"
    levels: int = 4
    ratio: float = 0.7
    block_min: int | Size = 8
    block_max: int | Size = 32
    boxes: tuple[int, int] = (10, 40)
    ordinal_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(1 <= self.levels <= 254, "objective.levels", "1 to 254", self.levels)
        require(0 < self.ratio <= 1, "objective.ratio", "above 0 and at most 1", self.ratio)
        least, greatest = sides(self.block_min), sides(self.block_max)
        require(min(least) >= 1, "objective.block_min", "at least 1 voxel", self.block_min)
        rising = all(low <= high for low, high in zip(least, greatest, strict=True))
        require(rising, "objective.block_max", f"at least block_min, {self.block_min}", self.block_max)
        low, high = self.boxes
        require(1 <= low <= high, "objective.boxes", "two rising numbers from 1", self.boxes)
        require(self.ordinal_weight >= 0, "objective.ordinal_weight", "at least 0", self.ordinal_weight)

    @property
    def views_per_sample(self) -> int:
        """Crops of each scan that the objective needs."""
        return 2 if self.pairing == "within" else 1

    @property
    def classes(self) -> int:
        """Channels that the network must return: the levels and the background."""
        return self.levels + 1


def sides(block: int | Size) -> Size:
    """Side along z, y, x of a block given by one number or three."""
    return (block, block, block) if isinstance(block, int) else block


def check(config: VolumeFusionConfig, patch: Size) -> None:
    """Refuse blocks that do not fit the patch: a grid of them would be empty, without any error.

    Raises:
        ConfigError: Naming `objective.block_max`.
    """
    fits = all(side <= size for side, size in zip(sides(config.block_max), patch, strict=True))
    require(fits, "objective.block_max", f"at most the patch, {patch}", config.block_max)


def sample_labels(
    seeds: Sequence[int], size: Size, config: VolumeFusionConfig, device: torch.device | str = "cpu"
) -> UInt8[Tensor, "b 1 z y x"]:
    """Draw which voxels are blended and how strongly.

    Parameters are drawn on the CPU from each sample's own seed; only painting
    is done on the device.

    Args:
        seeds: Seed of each sample.
        size: Voxels of the patch along z, y, x.
        config: Layout, levels and block sizes.
        device: Where the label is wanted.

    Returns:
        (b, 1, z, y, x) uint8 in 0..K; the blending coefficient is label / K.

    Raises:
        ConfigError: If a block may be larger than the patch, see `check`.
    """
    check(config, size)
    rngs = [rng(seed, "fusion") for seed in seeds]
    paint = _paint_grids if config.layout == "grid" else _paint_boxes
    return paint(rngs, size, config, torch.device(device))


def _paint_grids(
    rngs: Sequence[np.random.Generator], size: Size, config: VolumeFusionConfig, device: torch.device
) -> UInt8[Tensor, "b 1 z y x"]:
    """Paint a random share of the cells of one regular grid per sample, all samples in one gather."""
    table, (z, y, x) = _draw_grids(rngs, size, config, device)
    place = z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]
    return table.gather(1, place.flatten(1)).view(-1, 1, *size)


def _draw_grids(
    rngs: Sequence[np.random.Generator], size: Size, config: VolumeFusionConfig, device: torch.device
) -> tuple[UInt8[Tensor, "b cells"], tuple[Tensor, Tensor, Tensor]]:
    """Draw the grid of each sample, see `_draw_grid`, and bring all to the device."""
    tables, places = zip(*(_draw_grid(generator, size, config) for generator in rngs), strict=True)
    longest = max(map(len, tables))
    table = torch.from_numpy(np.stack([np.pad(one, (0, longest - len(one))) for one in tables])).to(device)
    z, y, x = (torch.from_numpy(np.stack(axis)).to(device) for axis in zip(*places, strict=True))
    return table, (z, y, x)


@functools.cache
def _fused() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The function of `pretrain.objectives.fusion_triton`, where torch came with a compiler for GPUs."""
    try:
        from pretrain.objectives import fusion_triton
    except ImportError:
        return None
    return fusion_triton.paint_and_fuse


def _draw_grid(
    generator: np.random.Generator, size: Size, config: VolumeFusionConfig
) -> tuple[NDArray[np.uint8], list[NDArray[np.int64]]]:
    """Draw one grid: the class of each cell, and per axis what each voxel adds to its cell's number.

    The grid has one more cell per axis than fits, of class 0, for the margin
    before and after the whole cells.
    """
    shape = np.array(size)
    side = generator.integers(sides(config.block_min), sides(config.block_max), endpoint=True)
    count = shape // side
    offset = generator.integers(0, shape % side, endpoint=True)
    blended = int(config.ratio * count.prod() + 1e-9)  # the addend undoes 0.7 * 90 = 62.999...
    classes = np.zeros(count.prod(), dtype=np.uint8)
    chosen = generator.permutation(len(classes))[:blended]
    classes[chosen] = generator.integers(1, config.levels, size=blended, endpoint=True)
    table = np.zeros(count + 1, dtype=np.uint8)
    table[:-1, :-1, :-1] = classes.reshape(count)
    places: list[NDArray[np.int64]] = []
    for axis in range(3):
        cell = (np.arange(shape[axis]) - offset[axis]) // side[axis]
        whole = (cell >= 0) & (cell < count[axis])
        places.append(np.where(whole, cell, count[axis]) * math.prod(table.shape[axis + 1 :]))
    return table.ravel(), places


def _paint_boxes(
    rngs: Sequence[np.random.Generator], size: Size, config: VolumeFusionConfig, device: torch.device
) -> UInt8[Tensor, "b 1 z y x"]:
    """Paint boxes with centres anywhere in the patch, clipped at its border, later ones over earlier ones."""
    label = torch.zeros(len(rngs), 1, *size, dtype=torch.uint8, device=device)
    least, greatest, shape = np.array(sides(config.block_min)), np.array(sides(config.block_max)), np.array(size)
    for row, generator in enumerate(rngs):
        for _ in range(generator.integers(*config.boxes, endpoint=True)):
            side = generator.integers(least, greatest, endpoint=True)
            start = generator.integers(0, shape) - side // 2
            z, y, x = (slice(max(a, 0), b) for a, b in zip(start.tolist(), (start + side).tolist(), strict=True))
            label[row, 0, z, y, x] = int(generator.integers(1, config.levels, endpoint=True))
    return label


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
        grids = [_draw_grid(rng(seed, "fusion"), (z, y, x), config) for seed in seeds]
        done = fuse_grids(background, foreground, grids, config.levels)
        if done is not None:
            return done
    if config.layout == "grid" and background.is_cuda and (on_gpu := _fused()) is not None:
        check(config, (z, y, x))
        draws = [rng(seed, "fusion") for seed in seeds]
        table, places = _draw_grids(draws, (z, y, x), config, background.device)
        return on_gpu(background, foreground, table, tuple(place.int() for place in places), config.levels)
    label = sample_labels(seeds, (z, y, x), config, background.device)
    return label, fuse(background, foreground, label, config.levels)


def loss(
    outputs: Tensor | Sequence[Tensor],
    label: UInt8[Tensor, "b 1 z y x"],
    ignored: Bool[Tensor, "b 1 z y x"] | None = None,
    ordinal_weight: float = 0.0,
) -> Losses:
    """Half soft Dice, pooled over the batch with class 0 included, half cross-entropy.

    Args:
        outputs: Logits (b, K + 1, z, y, x), or those of each head, full resolution first.
        label: Class of each voxel.
        ignored: True where a voxel does not count.
        ordinal_weight: Weight of the squared earth mover's distance; with 0 it is not computed.

    Returns:
        Terms `dice`, `ce` and, if it counts, `ordinal`; watched are `pretext_dice`, the Dice of the most likely
        classes (close to 1 means that the pretext is solved and teaches no more), and `pretext_accuracy`.
    """
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    target = (label if ignored is None else label.masked_fill(ignored, IGNORED)).squeeze(1)
    dice, ce = deep_supervision(_dice_and_ce, heads, target)
    terms, weights = {"dice": dice, "ce": ce}, {"dice": 0.5, "ce": 0.5}
    if ordinal_weight > 0:
        terms["ordinal"], weights["ordinal"] = deep_supervision(_ordinal, heads, target), ordinal_weight
    return Losses(terms=terms, weights=weights, watched=_watch(heads[0].detach(), target))


def _split(target: UInt8[Tensor, "b z y x"]) -> tuple[UInt8[Tensor, "b z y x"], Bool[Tensor, "b z y x"]]:
    """Turn marked voxels into class 0 and a mask that leaves them out."""
    counted = target != IGNORED
    return target * counted, counted


def _dice_and_ce(logits: Float[Tensor, "b k z y x"], target: UInt8[Tensor, "b z y x"]) -> Float[Tensor, "2"]:
    labels, counted = _split(target)
    return torch.stack(dice_and_cross_entropy(logits, labels, pooled=True, background=True, mask=counted))


def _ordinal(logits: Float[Tensor, "b k z y x"], target: UInt8[Tensor, "b z y x"]) -> Float[Tensor, ""]:
    labels, counted = _split(target)
    return earth_mover_loss(logits, labels, mask=counted)


@torch.no_grad()
def _watch(logits: Float[Tensor, "b k z y x"], target: UInt8[Tensor, "b z y x"]) -> dict[str, Tensor]:
    """Dice (mean of the classes that are true or predicted somewhere) and accuracy of the likeliest class."""
    labels, counted = _split(target)
    classes = logits.shape[1]
    pairs = (labels.long() * classes + logits.argmax(dim=1)).flatten()
    confusion = torch.zeros(classes**2, dtype=torch.long, device=logits.device)
    confusion = confusion.scatter_add(0, pairs, counted.flatten().long()).view(classes, classes)
    hits, size = confusion.diagonal(), confusion.sum(dim=0) + confusion.sum(dim=1)
    dice = (2 * hits / size.clamp(min=1)).sum() / (size > 0).sum().clamp(min=1)
    return {"pretext_dice": dice, "pretext_accuracy": hits.sum() / confusion.sum().clamp(min=1)}


def fuse_views(
    views: Views, config: VolumeFusionConfig
) -> tuple[
    Float[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"], UInt8[Tensor, "b 1 z y x"], Float[Tensor, "b 1 z y x"]
]:
    """Pair the crops, draw a label for each pair, and blend.

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
    background, foreground = _pair(views.images)
    label, fused = draw_and_fuse(background, foreground, views.seeds, config)
    return background, foreground, label, fused


def _pair(crops: Shaped[Tensor, "b v 1 z y x"]) -> tuple[Shaped[Tensor, "b 1 z y x"], Shaped[Tensor, "b 1 z y x"]]:
    """Each sample's own two crops, or its only crop and that of the sample before it."""
    first = crops[:, 0]
    return first, crops[:, 1] if crops.shape[1] == 2 else first.roll(1, dims=0)


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
    *_, label, fused = fuse_views(views, config)
    return loss(network(fused), label, _nowhere(views, label, config.levels), config.ordinal_weight)


def _nowhere(views: Views, label: UInt8[Tensor, "b 1 z y x"], levels: int) -> Bool[Tensor, "b 1 z y x"]:
    """Voxels at which a crop shows what lies outside of its scan or was blanked; they do not count.

    Where only one of the crops shows, at class 0 or K, the other may be anything. The published versions never see
    such voxels: they crop inside.
    """
    background, foreground = _pair(views.inside)
    return (~background & (label < levels)) | (~foreground & (label > 0))


class VolumeFusion(Objective):
    """Volume Fusion as a branch: a pointwise head on the finest features of the decoder."""

    def __init__(self, config: VolumeFusionConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.views_per_sample = config, config.views_per_sample
        self.head = nn.Conv3d(backbone.levels[0].channels, config.classes, 1)

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
        parts = fuse_views(views, self.config)
        return Plan({"fused": Pass(parts[3], decoder=True)}, (*parts, _nowhere(views, parts[2], self.config.levels)))

    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: Objective | None) -> Losses:  # noqa: ARG002
        """See `loss`."""
        *_, label, _, ignored = plan.targets
        return loss(self.head(seen["fused"].decoded[0]), label, ignored, self.config.ordinal_weight)

    def logits(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, Tensor]:
        """Levels of a voxel in eight, outside of the scan left out."""
        ignored = plan.targets[4][:, 0, ::2, ::2, ::2]
        scores = self.head(seen["fused"].decoded[0])[..., ::2, ::2, ::2].movedim(1, -1)
        return {"levels": scores[~ignored]}

    @torch.no_grad()
    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:
        """Both crops, the fused image, its label and the guess."""
        names = ("background", "foreground", "label", "fused")
        parts = dict(zip(names, plan.targets, strict=False))
        arrays = {name: part[0, 0].float().cpu().numpy() for name, part in parts.items()}
        guess = self.head(seen["fused"].decoded[0][:1])[0].float().argmax(0)
        return arrays | {"prediction": guess.cpu().numpy()}
