"""Looks at the network every n steps; the training goes on as if nobody had."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from pretrain.network import Heads, Pretraining, Said
from pretrain.objectives.interface import Seen
from pretrain.preview import passes
from pretrain.probe.config import ProbeConfig
from pretrain.probe.data import Labelled, Unlabelled, Voxels
from pretrain.probe.features import hypercolumns
from pretrain.probe.heads import HEAD_SAMPLES, HeadSums, Shown, head_figures, head_sums
from pretrain.probe.landmarks import Landmarks, landmark_figures, lattice
from pretrain.probe.properties import Embedded, find_splits, make_tiles, property_figures
from pretrain.probe.scores import Figure, dice_figures, lines, spread_figures
from voxscale import dist
from voxscale.engine.types import Engine
from voxscale.files import write_json
from voxscale.parts import slot_means
from voxscale.seed import rng, torch_generator

log = logging.getLogger("voxscale")

DENSE = 64
"""Voxels of each unlabelled crop for the ranks of dense features."""

FIRST = "probe-untrained.json"
"""What the untrained network was found to be, in the run folder."""

LAST = "probe-last.json"
"""What the network was found to be when it was last looked at, subject by subject."""


class Prober:
    """Probes a network in training; pass it to `train` as `observer`.

    The network sees the probes' own crops, in evaluation mode and without gradients, so weights, optimizer,
    running statistics, generators and the position in the stream stay as they are. All ranks show it the same
    crops, as under ZeRO-3 a forward pass is a joint act; rank 0 alone computes the figures.

    Args:
        config: When and how.
        engine: What is trained.
        network: The network in it.
        unlabelled: Crops of the training scans.
        labelled: Crops of labelled scans, if there are any.
        landmarks: Crops around labelled structures, if there are any.
        spacing: Of all crops along z, y, x in mm.
        show: Makes the scene of some of the training's samples, for the heads.
        run: Run folder; the untrained network's figures are kept there.
        steps: Length of the run.
        micro: Crops in one forward pass.
        seed: Of the run.
        channels_last: Memory layout of the images.
    """

    def __init__(
        self,
        config: ProbeConfig,
        engine: Engine,
        network: Pretraining,
        unlabelled: Unlabelled,
        labelled: Labelled | None,
        landmarks: Landmarks | None,
        spacing: tuple[float, float, float],
        show: Callable[[Sequence[int]], Shown],
        run: Path,
        steps: int,
        micro: int,
        seed: int,
        channels_last: bool = False,
    ) -> None:
        self._config, self._engine, self._network = config, engine, network
        self._unlabelled, self._labelled, self._show = unlabelled, labelled, show
        self._run, self._steps, self._micro, self._seed = run, steps, micro, seed
        self._channels_last = channels_last
        self._dense, self._landmarks = _scattered(unlabelled, seed), landmarks
        z, y, x = unlabelled.images.shape[2:]
        splits = find_splits(network.backbone, (z, y, x), spacing)
        self._tiles = None if splits is None else make_tiles(unlabelled, splits, spacing, seed)
        if splits is None:
            log.info("probe: no part of a crop is an image that the model takes, so parts and wholes are not compared")

    @property
    def levers(self) -> tuple[str, ...]:
        """What makes it need less memory, in words."""
        crops, voxels = (
            "; ".join(f"probe.{name}, now {getattr(self._config, name)}" for name in names)
            for names in (("patches", "cases", "crops"), ("queries", "examples"))
        )
        return f"look at fewer crops ({crops})", f"and voxels ({voxels})", "or at none (probe.every=0)"

    def due(self, step: int) -> bool:
        """Whether to look after so many steps: before the first, every n, and after the last."""
        return self._config.every > 0 and (step % self._config.every == 0 or step == self._steps)

    @torch.no_grad()
    def observe(self, step: int) -> dict[str, float]:
        """Probe; every rank calls.

        Returns:
            A row of metrics, see docs/design.md; empty on ranks other than 0.
        """
        self._engine.eval()
        try:
            figures = self._figures()
        finally:
            self._engine.train()
        if dist.rank() != 0:
            return {}
        plain = {name: asdict(one) for name, one in figures.items()}
        write_json(self._run / LAST, {"step": step, "figures": plain})
        if step == 0:
            write_json(self._run / FIRST, plain)
            return lines(figures, {}, self._seed)
        return lines(figures, self._untrained(), self._seed)

    def _untrained(self) -> dict[str, Figure]:
        file = self._run / FIRST
        if not file.is_file():
            log.warning("probe: %s is gone, so nothing is compared with the untrained network", file.name)
            return {}
        kept = json.loads(file.read_text())
        return {name: Figure(**{**one, "members": tuple(one["members"])}) for name, one in kept.items()}

    def _figures(self) -> dict[str, Figure]:
        """All figures by name; on other ranks than 0 only the forward passes are made."""
        found: dict[str, Figure] = {}
        for name, one in self._spreads().items():
            found[name] = one
        if self._labelled is not None:
            found |= self._dice(self._labelled)
        if self._landmarks is not None:
            found |= self._matches(self._landmarks)
        return found | self._heads()

    def _spreads(self) -> dict[str, Figure]:
        """Ranks and deviations: of pooled deepest features of crops, and of dense features; and parts and wholes."""
        pooled: list[Tensor] = []
        slots: list[Tensor] = []
        dense = _Columns(self._dense, self._unlabelled.images)
        for first, seen in self._passes(self._unlabelled.images):
            pooled.append(_pooled(seen))
            slots += [] if self._tiles is None else [slot_means(seen.features[-1].float(), self._tiles.splits).cpu()]
            dense.add(first, seen)
        properties = self._properties(pooled, slots)
        if dist.rank() != 0:
            return {}
        crops = torch.arange(len(self._unlabelled.images))
        named = {"embedding": spread_figures(torch.cat(pooled), crops, self._seed) | properties}
        for source, (columns, _) in dense.done().items():
            if source != "intensity":
                named[source] = spread_figures(columns, self._dense.crop, self._seed)
        return {f"{source}/{name}": one for source, each in named.items() for name, one in each.items()}

    def _properties(self, pooled: list[Tensor], slots: list[Tensor]) -> dict[str, Figure]:
        """See `property_figures`; further passes of parts and windows, as many voxels at a time as else."""
        tiles = self._tiles
        if tiles is None:
            return {}
        parts, windows = (self._embed(images, tiles.counted.shape[1]) for images in (tiles.parts, tiles.windows))
        if dist.rank() != 0:
            return {}
        found = Embedded(
            whole=torch.cat(pooled).cpu(),
            slots=torch.cat(slots),
            parts=parts.view(*tiles.counted.shape, -1),
            windows=windows.view(len(tiles.segments), 4, parts.shape[1]),
        )
        return property_figures(found, tiles, self._unlabelled.subjects, self._seed)

    def _embed(self, images: Tensor, times: int) -> Tensor:
        """Pooled deepest features of smaller images, so many times as many in a pass."""
        look = (self._engine, self._network, images, self._micro * times, self._channels_last)
        each = [_pooled(seen).cpu() for _, seen in passes(*look, decoder=False)]
        return torch.cat(each) if each else torch.zeros(0)

    def _matches(self, data: Landmarks) -> dict[str, Figure]:
        """See `landmark_figures`."""
        maps: dict[str, list[Tensor]] = {}
        widths: dict[str, list[int]] = {}
        size = data.images.shape[2:]
        for first, seen in self._passes(data.images):
            own = data.images[first : first + len(seen.features[0])]
            for name, each in (("encoder", seen.features), ("decoder", seen.decoded), ("intensity", [own])):
                if each and dist.rank() == 0:
                    widths[name] = [m.shape[1] for m in each]
                    maps.setdefault(name, []).append(lattice(each, size))
        return landmark_figures(
            {name: (torch.cat(each), widths[name]) for name, each in maps.items()}, data, self._seed
        )

    def _dice(self, data: Labelled) -> dict[str, Figure]:
        examples, queries = (_Columns(voxels, data.images) for voxels in (data.examples, data.queries))
        for first, seen in self._passes(data.images):
            examples.add(first, seen)
            queries.add(first, seen)
        if dist.rank() != 0:
            return {}
        learn, ask = examples.done(), queries.done()
        return {
            f"{source}/{name}": one
            for source, (columns, widths) in learn.items()
            for name, one in dice_figures(columns, ask[source][0], widths, data, self._config, self._seed).items()
        }

    def _heads(self) -> dict[str, Figure]:
        """Entropies of the branches' heads on the training's first samples, as many at a time as a pass has."""
        found: dict[str, list[HeadSums]] = {}
        for number, first in enumerate(range(0, HEAD_SAMPLES, self._micro)):
            shown = self._show(range(first, first + self._micro))
            draw = torch_generator(self._seed, "probe", "heads", number)
            wish = Heads(self._network.plans(shown.scene), draw, self._channels_last)
            said: Mapping[str, Said] = self._engine(wish)["heads"]
            if dist.rank() == 0:
                for name, one in said.items():
                    people = shown.labelled if one.labelled else shown.people
                    found.setdefault(name, []).append(head_sums(one, people))
        return {
            f"{name}_{what}": one
            for name, sums in found.items()
            for what, one in head_figures(sums, self._seed).items()
        }

    def _passes(self, images: Tensor) -> Iterator[tuple[int, Seen]]:
        return passes(self._engine, self._network, images, self._micro, self._channels_last)


class _Columns:
    """Gathers the features of chosen voxels, pass by pass, from encoder, decoder and the image itself."""

    def __init__(self, voxels: Voxels, images: Tensor) -> None:
        self._voxels, self._images = voxels, images
        self._parts: dict[str, list[Tensor]] = {}
        self._widths: dict[str, list[int]] = {}

    def add(self, first: int, seen: Seen) -> None:
        count = len(seen.features[0])
        here = (self._voxels.crop >= first) & (self._voxels.crop < first + count)
        crop, place = self._voxels.crop[here] - first, self._voxels.place[here]
        own = self._images[first : first + count].to(seen.features[0].device)
        for name, maps in (("encoder", seen.features), ("decoder", seen.decoded), ("intensity", [own])):
            if maps:
                self._widths[name] = [m.shape[1] for m in maps]
                columns = hypercolumns(maps, crop.to(own.device), place, own.shape[2:])
                self._parts.setdefault(name, []).append(columns)

    def done(self) -> dict[str, tuple[Tensor, list[int]]]:
        """Features of all voxels and the number of each level's, by source."""
        return {name: (torch.cat(parts), self._widths[name]) for name, parts in self._parts.items()}


def _pooled(seen: Seen) -> Tensor:
    return seen.features[-1].float().mean(dim=(2, 3, 4))


def _scattered(data: Unlabelled, seed: int) -> Voxels:
    """Some voxels inside each unlabelled crop."""
    places: list[Tensor] = []
    for number, inside in enumerate(data.inside):
        at = inside.nonzero()
        chosen = rng(seed, "probe", "dense", number).permutation(len(at))[:DENSE]
        chosen.sort()
        picked = at[torch.from_numpy(chosen)]
        places.append(torch.cat([torch.full((len(picked), 1), number), picked], dim=1))
    rows = torch.cat(places)
    nothing = torch.zeros(len(rows), dtype=torch.long)
    return Voxels(crop=rows[:, 0], place=rows[:, 1:], label=nothing, case=rows[:, 0])
