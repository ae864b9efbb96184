"""Second-order graph matching as a branch: two near views form two graphs that must match (LVM-Med, 2023)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pretrain.objectives import patch_graphs, sample_graphs
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.graph_heads import GraphMatchingHeads
from pretrain.objectives.graph_pictures import draw_samples, draw_tokens
from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.objectives.patch_graphs import patch_matching
from pretrain.objectives.sample_graphs import graph_matching
from pretrain.scene import Scene, Size, View
from voxscale.batch import Losses
from voxscale.config import require
from voxscale.matching.true_match import Nodes, cells, choose_nodes, places, true_match
from voxscale.models.interface import Backbone
from voxscale.samples import OWN, Samples
from voxscale.seed import rng, torch_generator

SIDES = ("s", "t")
"""Names of the two views."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is known of the two views.

    Attributes:
        views: Of each crop in turn, both views.
        generators: Of the noise of each graph, by the seed of its first sample, so whatever stands beside it.
        scans: Which scan each node lies in, for `sub_volume`.
        nodes: Which tokens are nodes, for `patch`.
        tokens_mm: Where the tokens of both views lie in mm, for `patch`.
    """

    views: list[tuple[View, View]]
    generators: Sequence[torch.Generator]
    scans: Tensor | None = None
    nodes: Nodes | None = None
    tokens_mm: tuple[Tensor, Tensor] | None = None


class GraphMatching(Objective):
    """Graph matching: nodes are samples or crops, seen by the deepest encoder stage, or tokens of a feature map."""

    def __init__(self, config: GraphMatchingConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.views_per_sample = config.crops if config.mode == "sub_volume" else 1
        self.decoder = config.mode == "patch" and config.features == "decoder"
        self.level = config.level if config.mode == "patch" else len(backbone.levels) - 1
        usable = backbone.decoder_levels if self.decoder else len(backbone.levels)
        require(usable > 0, "model", "one with a decoder for tokens of it", type(backbone).__name__)
        require(self.level < usable, "objective.graph_matching.level", f"0 to {usable - 1}", self.level)
        level = backbone.levels[self.level]
        self.stride = (1,) * (3 - backbone.dims) + tuple(level.stride)
        self.heads = GraphMatchingHeads(level.channels, config)

    def check(self, backbone: Backbone, patch: Size) -> None:  # noqa: ARG002
        """See `Objective.check`; a patch must have tokens for all nodes."""
        tokens = math.prod(self._grid(patch))
        enough = self.config.mode != "patch" or tokens >= self.config.nodes
        require(enough, "objective.graph_matching.nodes", f"up to the level's {tokens} tokens", self.config.nodes)

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        self.heads.initialise(generator)

    def _grid(self, size: Size) -> Size:
        z, y, x = (n // s for n, s in zip(size, self.stride, strict=True))
        return z, y, x

    def plan(self, scene: Scene) -> Plan:
        """Two near views of each crop, and where their voxels lie.

        Raises:
            ConfigError: If the samples are no whole groups.
        """
        config, count = self.config, len(scene.seeds) * self.views_per_sample
        if config.mode != "patch":
            name = "objective.graph_matching.group"
            require(count % config.group == 0, name, f"a divisor of a micro-batch's {count}", config.group)
        views: list[tuple[View, View]] = []
        for crop in range(self.views_per_sample):
            s, t = (scene.near(side, config.shares, flips=config.flips, crop=crop) for side in SIDES)
            views.append((s, t))
        passes = {
            f"{side}{number}": Pass(view.images, self.decoder)
            for number, pair in enumerate(views)
            for side, view in zip(SIDES, pair, strict=True)
        }
        each = 1 if config.mode == "patch" else config.group // self.views_per_sample
        device = views[0][0].images.device
        generators = [torch_generator(seed, "matching", device=device) for seed in scene.seeds[::each]]
        if config.mode == "patch":
            return Plan(passes, self._patch_targets(scene, views[0], generators))
        return Plan(passes, Targets(views, generators, self._scans(scene)))

    def _scans(self, scene: Scene) -> Tensor | None:
        """Scan of each node, crops of a sample together."""
        if self.config.mode != "sub_volume":
            return None
        step = len(scene.batch.seeds) // len(scene.seeds)
        known = scene.batch.scans[::step] or tuple(range(len(scene.seeds)))
        scans = torch.tensor(known, device=scene.crops.images.device)
        return scans.repeat_interleave(self.config.crops)

    def _patch_targets(self, scene: Scene, pair: tuple[View, View], generators: Sequence[torch.Generator]) -> Targets:
        """Choose nodes; every sample's from its own seed."""
        size = scene.patch
        grid = self._grid(size)
        source, target = (cells(view.place, size, grid) for view in pair)
        truth = true_match(source, target, (grid, grid))
        count = math.prod(grid)
        keys = [
            torch.tensor([rng(seed, "tokens", side).random(count).tolist() for seed in scene.seeds]).to(pair[0].place)
            for side in SIDES
        ]
        nodes = choose_nodes(truth, self.config.nodes, self.config.unmatched, (keys[0], keys[1]))
        s, t = (places(cells(view.mm, size, grid), grid) for view in pair)
        return Targets([pair], generators, nodes=nodes, tokens_mm=(s, t))

    def losses(
        self,
        seen: Mapping[str, Seen],
        plan: Plan,
        teacher: Objective | None,  # noqa: ARG002
        over: Samples = OWN,
    ) -> Losses:
        """See `graph_matching` and `patch_matching`."""
        targets: Targets = plan.targets
        if targets.nodes is not None and targets.tokens_mm is not None:
            maps = [self._features(seen[f"{side}0"]) for side in SIDES]
            both, tokens = (maps[0], maps[1]), targets.tokens_mm
            return patch_matching(both, tokens, targets.nodes, self.heads, self.config, targets.generators, over)
        maps, spots = self._nodes(seen, targets)
        where, draws = (spots[0], spots[1]), targets.generators
        return graph_matching(maps[0], maps[1], where, self.heads, self.config, draws, targets.scans, over)

    def _nodes(self, seen: Mapping[str, Seen], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps of all nodes of both views, crops of a sample together, and their places in mm."""
        maps, spots = [], []
        for at, side in enumerate(SIDES):
            each = [self._features(seen[f"{side}{number}"]) for number in range(len(targets.views))]
            where = [positions_mm(pair[at], one.shape[2:]) for pair, one in zip(targets.views, each, strict=True)]
            maps.append(torch.stack(each, dim=1).flatten(0, 1))
            spots.append(torch.stack(where, dim=1).flatten(0, 1))
        return maps, spots

    @torch.no_grad()
    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:
        """The nodes of the first graph, or the tokens of the first sample, joined to what they are matched with."""
        targets: Targets = plan.targets
        if self.config.matching_weight == 0:
            return {}
        if targets.nodes is not None and targets.tokens_mm is not None:
            maps = [self._features(seen[f"{side}0"]) for side in SIDES]
            match = patch_graphs.first_match(
                (maps[0], maps[1]), targets.tokens_mm, targets.nodes, self.heads, self.config
            )
            s, t = (view.images[0, 0] for view in targets.views[0])
            return {
                "graph_matching_matched_tokens": draw_tokens(
                    (s, t), self._shares(targets), match, targets.nodes.match[0]
                )
            }
        maps, spots = self._nodes(seen, targets)
        match = sample_graphs.first_match(
            (maps[0], maps[1]), (spots[0], spots[1]), self.heads, self.config, targets.scans
        )
        s, t = (torch.stack([pair[at].images[:, 0] for pair in targets.views], dim=1).flatten(0, 1) for at in (0, 1))
        return {"graph_matching_matched_nodes": draw_samples(s[: len(match)], t[: len(match)], match)}

    def _shares(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """Where the first sample's nodes lie in both views, along y and x, as shares of the sides."""
        if targets.nodes is None:
            raise ValueError("nodes must be tokens")
        nodes, found = targets.nodes, []
        for view, tokens, real in zip(
            targets.views[0], (nodes.source, nodes.target), (nodes.source_real, nodes.target_real), strict=True
        ):
            z, y, x = view.images.shape[2:]
            _, rows, columns = self._grid((z, y, x))
            at = torch.stack([tokens[0] // columns % rows, tokens[0] % columns], dim=1).double() + 0.5
            share = at / torch.tensor([rows, columns], dtype=at.dtype, device=at.device)
            found.append(share.masked_fill(~real[0].unsqueeze(1), torch.nan))
        return found[0], found[1]

    def _features(self, seen: Seen) -> Tensor:
        return (seen.decoded if self.decoder else seen.features)[self.level]


def positions_mm(view: View, grid: torch.Size) -> Float[Tensor, "b 3 z y x"]:
    """Centre of each cell of a feature map in the scan, in mm, see `View.mm`.

    Args:
        view: The view that the features are of.
        grid: Cells of the map along z, y, x.
    """
    spots = places(cells(view.mm, tuple(view.images.shape[2:]), tuple(grid)), tuple(grid))
    return spots.mT.unflatten(2, tuple(grid)).float()
