"""Second-order graph matching: the views of a group of samples form two graphs that must match (LVM-Med, 2023).

Written from the paper's equations (Nguyen et al., NeurIPS 2023, arXiv 2306.11925, section 3 and supplement A).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.scene import Scene, View
from voxscale.batch import Losses
from voxscale.config import config, require
from voxscale.errors import DataError
from voxscale.losses.info_nce import info_nce
from voxscale.losses.variance import variance_loss
from voxscale.matching.edge_affinity import edge_affinity, offset_affinity
from voxscale.matching.gcn import GCN
from voxscale.matching.graph_conv import GraphConv
from voxscale.matching.local_affinity import local_affinity
from voxscale.matching.neighbours import nearest
from voxscale.matching.perturbed import draw_noise, perturbed_loss
from voxscale.matching.problem import Problem
from voxscale.matching.solver import SolverConfig, solve
from voxscale.matching.vertex_affinity import cosines, vertex_affinity
from voxscale.models.interface import Backbone
from voxscale.models.layers import draw_truncated
from voxscale.seed import torch_generator


@config
class GraphMatchingConfig:
    """What the graphs are and how the match is learnt.

    Attributes:
        kind: Tells objectives apart in a saved config.
        mode: `image`: nodes are samples; `sub_volume`: nodes are crops of several scans, and edges also join
            crops of one scan, with their offsets in mm.
        shares: Least and greatest side of each of the two views, as a share of the crop's.
        group: Nodes of a graph, consecutive samples.
        k: Edges from each node to the nearest by features.
        spatial_k: Further edges to the nearest crops of the same scan (`sub_volume` only).
        offset_mm: Difference of two offsets at which their agreement has fallen to 0.61 (`sub_volume` only).
        offset_weight: Weight of that agreement in the worth of edges.
        width: Features of the projector and of the graph layers.
        gnn: Graph layers: `gcn` as in Eq. 1, `graph_conv` with a weight for the node itself, or `none`.
        layers: Number of graph layers.
        alpha: Share of the global part of the worth of nodes; 1 leaves the local part out.
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
    mode: Literal["image", "sub_volume"] = "image"
    shares: tuple[float, float] = (0.6, 1.0)
    group: int = 16
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
        require(1 <= self.k < self.group - spatial, "objective.k", "1 to the other nodes of the group", self.k)
        require(0 <= self.alpha <= 1, "objective.alpha", "0 to 1", self.alpha)
        for name in ("width", "layers", "num_samples", "spatial_k"):
            require(getattr(self, name) >= 1, f"objective.{name}", "at least 1", getattr(self, name))
        for name in ("temperature", "lambda_", "offset_mm"):
            require(getattr(self, name) > 0, f"objective.{name}", "above 0", getattr(self, name))
        weights = ("matching_weight", "variance_weight", "info_nce_weight")
        for name in (*weights, "gamma", "margin", "gumbel_scale", "edge_weight", "offset_weight"):
            require(getattr(self, name) >= 0, f"objective.{name}", "at least 0", getattr(self, name))
        learns = any(getattr(self, name) for name in weights)
        require(learns, "objective.matching_weight", "above 0 where all other terms have weight 0", 0)


def paper() -> GraphMatchingConfig:
    """As the paper prints it: Eq. 1's layers, Gumbel(0, 1), lambda 80, the Hamming loss alone."""
    return GraphMatchingConfig(gnn="gcn", variance_weight=0.0, truth_candidate=False, watch_map=False)


class GraphMatchingHeads(nn.Module):
    """Projector and graph layers, shared by both views.

    Args:
        channels: Features of the encoder.
        config: Widths and kind of layers.
    """

    def __init__(self, channels: int, config: GraphMatchingConfig) -> None:
        super().__init__()
        self.projector = nn.Linear(channels, config.width)
        kind = {"gcn": GCN, "graph_conv": GraphConv, "none": None}[config.gnn]
        made = [] if kind is None else [kind(config.width, config.width) for _ in range(config.layers)]
        self.layers = nn.ModuleList(made)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        draw_truncated(self.projector.weight, generator, self.projector.in_features**-0.5)
        self.projector.bias.zero_()
        for layer in self.layers:
            layer.initialise(generator)

    def forward(self, values: Float[Tensor, "b n f"], edges: Int64[Tensor, "b n k"]) -> Float[Tensor, "b n f"]:
        """Pass messages along the edges; no activation after the last layer."""
        values = values.to(self.projector.weight.dtype)
        for number, layer in enumerate(self.layers):
            values = layer(values if number == 0 else values.relu(), edges)
        return values


def graph_matching(
    features_s: Float[Tensor, "s c *grid"],
    features_t: Float[Tensor, "s c *grid"],
    positions: tuple[Float[Tensor, "s d *grid"], Float[Tensor, "s d *grid"]],
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
    generator: torch.Generator,
    scans: Int64[Tensor, " s"] | None = None,
) -> Losses:
    """Match the graphs of two views.

    Args:
        features_s: Feature maps of the first view of each sample.
        features_t: Feature maps of the second view.
        positions: Place of each feature vector in its scan in mm, of both views.
        heads: Projector and graph layers.
        config: What the graphs are.
        generator: Of noise and kicks, on the device of the features.
        scans: Which scan each sample was cut from (`sub_volume` only).

    Returns:
        Terms `matching`, `variance`, `info_nce`, those whose weight is not 0; watched are `match_accuracy` (with
        noise), `map_accuracy` (without), `retrieval` (most alike node) and `embedding_std`.

    Raises:
        DataError: If the samples are no whole groups, views differ in shape, or scans are missing or too small.
    """
    _check(features_s, features_t, config, scans)
    shape = (-1, config.group)
    z = [heads.projector(f.flatten(2).mean(dim=2)).float().view(*shape, config.width) for f in (features_s, features_t)]
    weights = {"matching": config.matching_weight, "variance": config.variance_weight}
    weights = {name: w for name, w in {**weights, "info_nce": config.info_nce_weight}.items() if w > 0}
    terms: dict[str, Tensor] = {}
    alike = cosines(*(part.detach() for part in z)).argmax(dim=2)
    truth = torch.arange(config.group, device=alike.device).expand_as(alike)
    watched = {"retrieval": _share(alike, truth), "embedding_std": z[0].detach().flatten(0, 1).std(dim=0).mean()}
    if "matching" in weights:
        problem = build_problem(z, (features_s, features_t), positions, heads, config, scans)
        terms["matching"], accuracies = _match(problem, truth, config, generator)
        watched |= accuracies
    if "variance" in weights:
        terms["variance"] = torch.stack([variance_loss(part.flatten(0, 1)) for part in z]).mean()
    if "info_nce" in weights:
        terms["info_nce"] = info_nce(z[0], z[1], config.temperature)
    return Losses(terms=terms, weights=weights, watched=watched)


def _match(
    problem: Problem, truth: Int64[Tensor, "b n"], config: GraphMatchingConfig, generator: torch.Generator
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The matching term, and how often the match is true."""
    noise = draw_noise(problem, config.num_samples, config.gumbel_scale, generator)

    def solver(case: Problem) -> Tensor:
        known = truth.repeat(len(case.vertex) // len(truth), 1) if config.truth_candidate else None
        return solve(case, config.solver, generator, known)

    found = perturbed_loss(problem, truth, noise, solver, margin=config.margin, lambda_=config.lambda_)
    watched = {"match_accuracy": _share(found.match, truth)}
    if config.watch_map:
        watched["map_accuracy"] = _share(solver(problem), truth)
    return found.loss.mean() / config.group, watched


def build_problem(
    z: list[Tensor],
    maps: tuple[Tensor, Tensor],
    positions: tuple[Tensor, Tensor],
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
    scans: Tensor | None,
) -> Problem:
    """Graphs and worths of both views, with gradient."""
    shape = (-1, config.group)
    groups = None if scans is None or config.mode == "image" else scans.view(shape)
    centres = [p.flatten(2).mean(dim=2).float().view(*shape, p.shape[1]) for p in positions]
    edges = [_edges(part.detach(), place, groups, config) for part, place in zip(z, centres, strict=True)]
    u = [heads(part, edge).float() for part, edge in zip(z, edges, strict=True)]
    local = None
    if config.alpha < 1:
        grouped = [part.float().view(*shape, *part.shape[1:]) for part in (*maps, *positions)]
        local = local_affinity(grouped[0], grouped[1], grouped[2], grouped[3], config.gamma or None)
    edge = edge_affinity(u[0], u[1], edges[0], edges[1])
    if groups is not None:
        offsets = offset_affinity(centres[0], centres[1], edges[0], edges[1], config.offset_mm, groups, groups)
        edge = edge + config.offset_weight * offsets
    vertex = vertex_affinity(u[0], u[1], local, config.alpha)
    return Problem(vertex=vertex, edge=config.edge_weight * edge, source=edges[0], target=edges[1])


def _edges(points: Tensor, centres: Tensor, groups: Tensor | None, config: GraphMatchingConfig) -> Tensor:
    """Nearest nodes by features, in sub-volumes after the nearest ones of the same scan by place."""
    if groups is None:
        return nearest(points, config.k)
    close = nearest(centres, config.spatial_k, group=groups)
    return torch.cat([close, nearest(points, config.k, taken=close)], dim=2)


def _share(match: Tensor, truth: Tensor) -> Tensor:
    return (match == truth).float().mean()


def _check(first: Tensor, second: Tensor, config: GraphMatchingConfig, scans: Tensor | None) -> None:
    if first.shape[:2] != second.shape[:2] or len(first) % config.group or not len(first):
        said = f"not {tuple(first.shape)} and {tuple(second.shape)}"
        raise DataError(f"views must be two times whole groups of {config.group} samples, {said}", "bad_batch")
    if config.mode == "sub_volume" and (scans is None or scans.shape != first.shape[:1]):
        raise DataError("scans must name the scan of each sample for sub-volumes, not be missing", "bad_batch")


class GraphMatching(Objective):
    """Graph matching as a branch: two near views of each sample are nodes, seen by the deepest encoder stage."""

    def __init__(self, config: GraphMatchingConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.heads = GraphMatchingHeads(backbone.levels[-1].channels, config)

    def check(self, backbone: Backbone, patch: tuple[int, int, int]) -> None:  # noqa: ARG002
        """See `Objective.check`; crops of one scan do not come together from the stream yet."""
        mode = self.config.mode
        require(mode == "image", "objective.graph_matching.mode", "one that a stream serves", mode, ("image",))

    def initialise(self, generator: torch.Generator) -> None:
        """See `Objective.initialise`."""
        self.heads.initialise(generator)

    def plan(self, scene: Scene) -> Plan:
        """Two near views, and where their voxels lie.

        Raises:
            ConfigError: If the samples are no whole groups.
        """
        count, group = len(scene.seeds), self.config.group
        require(count % group == 0, "objective.graph_matching.group", f"a divisor of a micro-batch's {count}", group)
        views = [scene.near(name, self.config.shares) for name in ("s", "t")]
        generator = torch_generator(scene.seeds[0], "matching", device=views[0].images.device)
        passes = {name: Pass(view.images) for name, view in zip(("s", "t"), views, strict=True)}
        return Plan(passes, (views, scene.spacing, generator))

    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: Objective | None) -> Losses:  # noqa: ARG002
        """See `graph_matching`."""
        views, spacing, generator = plan.targets
        maps = [seen[name].features[-1] for name in ("s", "t")]
        places = [positions_mm(view, spacing, one.shape[2:]) for view, one in zip(views, maps, strict=True)]
        return graph_matching(maps[0], maps[1], (places[0], places[1]), self.heads, self.config, generator)


def positions_mm(view: View, spacing: tuple[float, float, float], grid: torch.Size) -> Float[Tensor, "b 3 z y x"]:
    """Centre of each cell of a feature map in the first crop, in mm before zoom.

    Args:
        view: The view that the features are of.
        spacing: (z, y, x) of the crop's voxels in mm.
        grid: Cells of the map along z, y, x.
    """
    size = view.images.shape[2:]
    axes = [
        (torch.arange(cells, device=view.place.device) + 0.5) * (voxels / cells) - 0.5
        for cells, voxels in zip(grid, size, strict=True)
    ]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(view.place)
    voxels = torch.einsum("bij,jzyx->bizyx", view.place[:, :, :3], cells) + view.place[:, :, 3, None, None, None]
    return voxels * torch.tensor(spacing).to(voxels).view(1, 3, 1, 1, 1)
