"""What graphs are matched, and how: the options of second-order graph matching."""

import dataclasses
from typing import Literal

from voxscale.config import config, require
from voxscale.matching.perturbed import SURE
from voxscale.matching.solver import SolverConfig


@config
class GraphMatchingConfig:
    """What the graphs are and how the match is learnt.

    Attributes:
        kind: Tells objectives apart in a saved config.
        mode: `image`: nodes are samples; `sub_volume`: nodes are crops of several scans, and edges also join
            crops of one scan, with their offsets in mm; `patch`: nodes are tokens in what two views of a crop
            share, the true match is known from where they were cut, and nodes may stay unmatched.
        shares: Least and greatest side of each of the two views, as a share of the crop's.
        flips: Probability of mirroring each view along z, y, x.
        group: Nodes of a graph, consecutive samples (`image`) or crops of consecutive samples (`sub_volume`).
        crops: Crops of each sample that are nodes (`sub_volume` only).
        nodes: Tokens of each view that are nodes (`patch` only).
        unmatched: Share of them left to tokens that the other view does not show (`patch` only).
        features: Whose features the tokens are (`patch` only).
        level: Which of the feature maps has the tokens, 0 at full resolution (`patch` only).
        k: Edges from each node to the nearest by features, in `patch` by place in mm.
        spatial_k: Further edges to the nearest crops of the same scan (`sub_volume` only).
        offset_mm: Difference of two offsets at which their agreement has fallen to 0.61 (`sub_volume` only).
        offset_weight: Weight of that agreement in the worth of edges.
        width: Features of the projector and of the graph layers.
        gnn: Graph layers: `gcn` as in Eq. 1, `graph_conv` with a weight for the node itself, or `none`.
        layers: Number of graph layers.
        alpha: Share of the global part of the worth of nodes; 1 leaves the local part out, as `patch` always does.
        gamma: Closest pairs of feature vectors that count in the local part; 0 for all.
        edge_weight: Weight of edges; 0 is linear matching.
        gumbel_scale: Scale of the noise while solving.
        num_samples: Draws of noise per step.
        margin: Taken from true pairs while solving.
        lambda_: See `voxscale.matching.perturbed.perturbed_loss`.
        matching_weight: Weight of the matching term; 0 leaves the solver out (the InfoNCE twin).
        variance_weight: Weight of the variance term.
        info_nce_weight: Weight of the InfoNCE term.
        temperature: Of InfoNCE.
        truth_candidate: Whether the true match is taken where the solver finds none that is better.
        watch_map: Whether the match without noise is solved too, for `map_accuracy`.
        solver: How hard the solver tries.
    """

    kind: Literal["graph_matching"] = "graph_matching"
    mode: Literal["image", "sub_volume", "patch"] = "image"
    shares: tuple[float, float] = (0.6, 1.0)
    flips: tuple[float, float, float] = (0.0, 0.0, 0.0)
    group: int = 16
    crops: int = 4
    nodes: int = 64
    unmatched: float = 0.125
    features: Literal["encoder", "decoder"] = "encoder"
    level: int = 3
    k: int = 5
    spatial_k: int = 2
    offset_mm: float = 10.0
    offset_weight: float = 0.5
    width: int = 128
    gnn: Literal["gcn", "graph_conv", "none"] = "graph_conv"
    layers: int = 2
    alpha: float = 0.8
    gamma: int = 0
    edge_weight: float = 1.0
    gumbel_scale: float = 1.0
    num_samples: int = 1
    margin: float = 0.0
    lambda_: float = 80.0
    matching_weight: float = 1.0
    variance_weight: float = 1.0
    info_nce_weight: float = 0.0
    temperature: float = 0.1
    truth_candidate: bool = True
    watch_map: bool = True
    solver: SolverConfig = SolverConfig(steps=15, rounds=8)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        spatial = self.spatial_k if self.mode == "sub_volume" else 0
        require(4 <= self.group <= 256, "objective.group", "4 to 256 nodes", self.group)
        require(4 <= self.nodes <= 256, "objective.nodes", "4 to 256 nodes", self.nodes)
        nodes = self.nodes if self.mode == "patch" else self.group
        require(1 <= self.k < nodes - spatial, "objective.k", "1 to the other nodes of the group", self.k)
        require(0 <= self.unmatched <= 0.5, "objective.unmatched", "0 to 0.5", self.unmatched)
        require(all(0 <= p <= 1 for p in self.flips), "objective.flips", "three probabilities", self.flips)
        if self.mode == "sub_volume":
            require(self.crops >= 2, "objective.crops", "at least 2", self.crops)
            require(self.group % self.crops == 0, "objective.group", f"a multiple of {self.crops} crops", self.group)
        sure = self.mode != "patch" or self.lambda_ >= SURE
        require(sure, "objective.lambda_", f"at least {SURE:.0f} where nodes may stay unmatched", self.lambda_)
        require(0 <= self.alpha <= 1, "objective.alpha", "0 to 1", self.alpha)
        for name in ("width", "layers", "num_samples", "spatial_k"):
            require(getattr(self, name) >= 1, f"objective.{name}", "at least 1", getattr(self, name))
        for name in ("temperature", "lambda_", "offset_mm"):
            require(getattr(self, name) > 0, f"objective.{name}", "above 0", getattr(self, name))
        weights = ("matching_weight", "variance_weight", "info_nce_weight")
        for name in (*weights, "level", "gamma", "margin", "gumbel_scale", "edge_weight", "offset_weight"):
            require(getattr(self, name) >= 0, f"objective.{name}", "at least 0", getattr(self, name))
        learns = any(getattr(self, name) for name in weights)
        require(learns, "objective.matching_weight", "above 0 where all other terms have weight 0", 0)


def paper() -> GraphMatchingConfig:
    """As the paper prints it: Eq. 1's layers, Gumbel(0, 1), lambda 80, the Hamming loss alone."""
    return GraphMatchingConfig(gnn="gcn", variance_weight=0.0, truth_candidate=False, watch_map=False)


def info_nce_twin(config: GraphMatchingConfig) -> GraphMatchingConfig:
    """InfoNCE alone on the same nodes of the same views: what every claim for matching is compared with."""
    return dataclasses.replace(config, matching_weight=0.0, variance_weight=0.0, info_nce_weight=1.0)
