"""Graphs whose nodes are samples or crops of scans: two views of each node, matched as a whole.

Written from the paper's equations (Nguyen et al., NeurIPS 2023, arXiv 2306.11925, section 3 and supplement A).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.graph_heads import GraphMatchingHeads
from voxscale.batch import Losses
from voxscale.errors import DataError
from voxscale.losses.info_nce import info_nce
from voxscale.losses.variance import variance_loss, variances
from voxscale.matching.edge_affinity import edge_affinity, offset_affinity
from voxscale.matching.local_affinity import local_affinity
from voxscale.matching.neighbours import nearest
from voxscale.matching.perturbed import Generators, draw_noise, perturbed_loss
from voxscale.matching.problem import Problem
from voxscale.matching.solver import solve
from voxscale.matching.vertex_affinity import cosines, vertex_affinity
from voxscale.samples import OWN, Samples
from voxscale.seed import torch_generator


def graph_matching(
    features_s: Float[Tensor, "s c *grid"],
    features_t: Float[Tensor, "s c *grid"],
    positions: tuple[Float[Tensor, "s d *grid"], Float[Tensor, "s d *grid"]],
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
    generator: Generators,
    scans: Int64[Tensor, " s"] | None = None,
    over: Samples = OWN,
) -> Losses:
    """Match the graphs of two views.

    Args:
        features_s: Feature maps of the first view of each sample.
        features_t: Feature maps of the second view.
        positions: Place of each feature vector in its scan in mm, of both views.
        heads: Projector and graph layers.
        config: What the graphs are.
        generator: Of noise and kicks, one for all graphs or one for each, on the device of the features.
        scans: Which scan each sample was cut from (`sub_volume` only).
        over: Whose samples deviations are taken over. All else is a mean over graphs, of which ranks have equally many.

    Returns:
        Terms `matching`, `variance`, `info_nce`, those whose weight is not 0; watched are `match_accuracy` (with
        noise), `map_accuracy` (without), `retrieval` (most alike node) and `embedding_std`.

    Raises:
        DataError: If the samples are no whole groups, views differ in shape, or scans are missing or too small.
    """
    _check(features_s, features_t, config, scans)
    z = _project((features_s, features_t), heads, config)
    weights = {"matching": config.matching_weight, "variance": config.variance_weight}
    weights = {name: w for name, w in {**weights, "info_nce": config.info_nce_weight}.items() if w > 0}
    terms: dict[str, Tensor] = {}
    alike = cosines(*(part.detach() for part in z)).argmax(dim=2)
    truth = torch.arange(config.group, device=alike.device).expand_as(alike)
    watched = {
        "retrieval": share(alike, truth),
        "embedding_std": variances(z[0].detach().flatten(0, 1), over).sqrt().mean(),
    }
    if "matching" in weights:
        problem = build_problem(z, (features_s, features_t), positions, heads, config, scans)
        terms["matching"], accuracies = _match(problem, truth, config, generator)
        watched |= accuracies
    if "variance" in weights:
        terms["variance"] = torch.stack([variance_loss(part.flatten(0, 1), over=over) for part in z]).mean()
    if "info_nce" in weights:
        terms["info_nce"] = info_nce(z[0], z[1], config.temperature)
    return Losses(terms=terms, weights=weights, watched=watched)


def _project(maps: tuple[Tensor, Tensor], heads: GraphMatchingHeads, config: GraphMatchingConfig) -> list[Tensor]:
    """Mean of each map, projected, by graphs: (graphs, nodes, width) of both views."""
    return [heads.projector(f.flatten(2).mean(dim=2)).float().view(-1, config.group, config.width) for f in maps]


@torch.no_grad()
def first_match(
    features: tuple[Float[Tensor, "s c *grid"], Float[Tensor, "s c *grid"]],
    positions: tuple[Float[Tensor, "s d *grid"], Float[Tensor, "s d *grid"]],
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
    scans: Int64[Tensor, " s"] | None = None,
) -> Int64[Tensor, " n"]:
    """The match of the first graph, without noise and without help from the true one; arguments as `graph_matching`."""
    count = config.group
    s, t = (part[:count] for part in features)
    z = _project((s, t), heads, config)
    where = (positions[0][:count], positions[1][:count])
    problem = build_problem(z, (s, t), where, heads, config, None if scans is None else scans[:count])
    return solve(problem, config.solver, torch_generator(0, "picture", device=s.device))[0]


def _match(
    problem: Problem, truth: Int64[Tensor, "b n"], config: GraphMatchingConfig, generator: Generators
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The matching term, and how often the match is true."""
    noise = draw_noise(problem, config.num_samples, config.gumbel_scale, generator)

    def solver(case: Problem) -> Tensor:
        known = truth.repeat(len(case.vertex) // len(truth), 1) if config.truth_candidate else None
        return solve(case, config.solver, generator, known)

    found = perturbed_loss(problem, truth, noise, solver, margin=config.margin, lambda_=config.lambda_)
    watched = {"match_accuracy": share(found.match, truth)}
    if config.watch_map:
        watched["map_accuracy"] = share(solver(problem), truth)
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


def share(match: Tensor, truth: Tensor) -> Tensor:
    """Share of equal entries."""
    return (match == truth).float().mean()


def _check(first: Tensor, second: Tensor, config: GraphMatchingConfig, scans: Tensor | None) -> None:
    if first.shape[:2] != second.shape[:2] or len(first) % config.group or not len(first):
        said = f"not {tuple(first.shape)} and {tuple(second.shape)}"
        raise DataError(f"views must be two times whole groups of {config.group} samples, {said}", "bad_batch")
    if config.mode == "sub_volume" and (scans is None or scans.shape != first.shape[:1]):
        raise DataError("scans must name the scan of each sample for sub-volumes, not be missing", "bad_batch")
