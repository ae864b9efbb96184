"""Graphs inside a volume: nodes are tokens of two views of a crop, the true match is known from where they were cut.

A dense counterpart of graph matching between samples (Nguyen et al. 2023 leave it open). Nodes may stay unmatched at
a learned price, one number for all, as in SuperGlue (Sarlin et al. 2020).
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.graph_heads import GraphMatchingHeads
from voxscale.batch import Losses
from voxscale.losses.variance import variance_loss, variances
from voxscale.matching.dustbin import UNMATCHED, complete, partial, with_dustbins
from voxscale.matching.edge_affinity import edge_affinity
from voxscale.matching.neighbours import ends, nearest_places
from voxscale.matching.perturbed import Generators, draw_noise, gumbel_copies, perturbed_loss
from voxscale.matching.problem import Problem
from voxscale.matching.solver import solve
from voxscale.matching.true_match import Nodes
from voxscale.matching.vertex_affinity import cosines
from voxscale.samples import OWN, Samples
from voxscale.seed import torch_generator

NEVER = -100.0
"""Worth of a node that is not there."""

FAR = 1e6
"""Distance in mm at which nodes that are not there stand."""


def patch_matching(
    maps: tuple[Float[Tensor, "b c *grid"], Float[Tensor, "b c *grid2"]],
    places: tuple[Float[Tensor, "b l 3"], Float[Tensor, "b m 3"]],
    nodes: Nodes,
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
    generator: Generators,
    over: Samples = OWN,
) -> Losses:
    """Match tokens of two views.

    Args:
        maps: Features of both views.
        places: Where their tokens lie in the scan in mm, x fastest.
        nodes: Which tokens are nodes, and their true match.
        heads: Projector, graph layers and price of a node that stays unmatched.
        config: What the graphs are.
        generator: Of noise and kicks, one for all graphs or one for each, on the device of the features.
        over: Whose samples' pairs and deviations the terms are taken over.

    Returns:
        Terms `matching`, `variance`, `info_nce`, those whose weight is not 0; watched are `match_accuracy` (with
        noise, nodes without partner included), `map_accuracy` (without), `retrieval` (most alike token, of nodes
        with a partner), `paired` (share of nodes that have one), `dustbin` (the price) and `embedding_std`.
    """
    chosen = (nodes.source, nodes.target)
    z = [heads.projector(_take(m.flatten(2).mT, at)).float() for m, at in zip(maps, chosen, strict=True)]
    alike = cosines(z[0], z[1]).masked_fill(~nodes.target_real.unsqueeze(1), -torch.inf)
    paired = nodes.match != UNMATCHED
    hits = (alike.argmax(dim=2) == nodes.match) & paired
    found, pairs = over.total(hits.sum(), paired.sum())
    watched = {
        "retrieval": found / pairs.clamp(min=1),
        "paired": paired.float().mean(),
        "embedding_std": variances(z[0].detach().flatten(0, 1), over).sqrt().mean(),
    }
    terms: dict[str, Tensor] = {}
    if heads.dustbin is not None:
        problem = build_problem(z, [_take(p, at) for p, at in zip(places, chosen, strict=True)], nodes, heads, config)
        terms["matching"], accuracies = _match(problem, nodes, heads.dustbin, config, generator, over)
        watched |= accuracies | {"dustbin": heads.dustbin.detach().float()[0].clone()}  # not as it is after the step
    if config.variance_weight > 0:
        terms["variance"] = torch.stack([variance_loss(part.flatten(0, 1), over=over) for part in z]).mean()
    if config.info_nce_weight > 0:
        terms["info_nce"] = _contrast(cosines(z[0], z[1]) / config.temperature, nodes, over)
    return Losses(terms=terms, weights={name: getattr(config, f"{name}_weight") for name in terms}, watched=watched)


@torch.no_grad()
def first_match(
    maps: tuple[Float[Tensor, "b c *grid"], Float[Tensor, "b c *grid2"]],
    places: tuple[Float[Tensor, "b l 3"], Float[Tensor, "b m 3"]],
    nodes: Nodes,
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
) -> Int64[Tensor, " n"]:
    """The first sample's match, without noise and without help from the true one; arguments as `patch_matching`."""
    if heads.dustbin is None:
        raise ValueError("heads must have a price of unmatched nodes")
    own = Nodes(*(getattr(nodes, name)[:1] for name in ("source", "target", "source_real", "target_real", "match")))
    chosen = (own.source, own.target)
    z = [heads.projector(_take(m[:1].flatten(2).mT, at)).float() for m, at in zip(maps, chosen, strict=True)]
    problem = build_problem(z, [_take(p[:1], at) for p, at in zip(places, chosen, strict=True)], own, heads, config)
    binned = with_dustbins(problem, *(heads.dustbin.float() * real for real in (own.source_real, own.target_real)))
    return partial(solve(binned, config.solver, torch_generator(0, "picture", device=own.source.device)))[0]


def _take(values: Float[Tensor, "b l c"], at: Tensor) -> Float[Tensor, "b n c"]:
    return values.gather(1, at.unsqueeze(2).expand(-1, -1, values.shape[2]))


def build_problem(
    z: list[Tensor],
    places: list[Float[Tensor, "b n 3"]],
    nodes: Nodes,
    heads: GraphMatchingHeads,
    config: GraphMatchingConfig,
) -> Problem:
    """Graphs and worths of both views, with gradient, without dustbins.

    Edges join tokens that are near in mm. Their offsets are no part of their
    worth: they would give the true match away.
    """
    real = (nodes.source_real, nodes.target_real)
    edges = [nearest_places(_aside(p, there), config.k) for p, there in zip(places, real, strict=True)]
    u = [heads(part, edge).float() for part, edge in zip(z, edges, strict=True)]
    both = [_joins(there, edge).to(u[0]) for there, edge in zip(real, edges, strict=True)]
    edge = edge_affinity(u[0], u[1], edges[0], edges[1])
    edge = edge * both[0][:, :, :, None, None] * both[1][:, None, None]
    vertex = cosines(u[0], u[1]).masked_fill(~_pairs(nodes), NEVER)
    return Problem(vertex=vertex, edge=config.edge_weight * edge, source=edges[0], target=edges[1])


def _aside(places: Tensor, real: Tensor) -> Tensor:
    """Places, those of nodes that are not there far away from all and from each other."""
    number = torch.arange(1, places.shape[1] + 1, device=places.device, dtype=places.dtype)
    return torch.where(real.unsqueeze(2), places, (FAR * number).view(1, -1, 1))


def _joins(real: Tensor, edges: Tensor) -> Bool[Tensor, "b n k"]:
    """Whether both ends of an edge are there."""
    return real.unsqueeze(2) & ends(real.unsqueeze(2), edges).squeeze(3)


def _pairs(nodes: Nodes) -> Bool[Tensor, "b n n"]:
    return nodes.source_real.unsqueeze(2) & nodes.target_real.unsqueeze(1)


def _match(
    problem: Problem, nodes: Nodes, price: Tensor, config: GraphMatchingConfig, generator: Generators, over: Samples
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The matching term, and how often the match is true."""
    shape = problem.vertex.shape[:2]
    truth = complete(nodes.match)
    binned = with_dustbins(problem, *(price.float() * real for real in (nodes.source_real, nodes.target_real)))
    noise = draw_noise(problem, config.num_samples, config.gumbel_scale, generator)
    # One draw for all dustbins of a node: the greatest of many draws would make it cheap to leave nodes unmatched.
    draws = [gumbel_copies(shape, config.num_samples, generator) for _ in range(2)]
    to_bins = [config.gumbel_scale * one for one in draws]

    def solver(case: Problem) -> Tensor:
        known = truth.repeat(len(case.vertex) // len(truth), 1) if config.truth_candidate else None
        return solve(case, config.solver, generator, known)

    binned_noise = with_dustbins(noise, to_bins[0], to_bins[1])
    found = perturbed_loss(binned, truth, binned_noise, solver, margin=config.margin, lambda_=config.lambda_)
    watched = {"match_accuracy": _right(found.match.flatten(0, 1), nodes, over)}
    if config.watch_map:
        watched["map_accuracy"] = _right(solver(binned), nodes, over)
    return found.loss.mean() / shape[1], watched


def _right(match: Tensor, nodes: Nodes, over: Samples) -> Tensor:
    """Share of the real source nodes whose match is true, be it that they have none."""
    times = len(match) // len(nodes.match)
    right = (partial(match) == nodes.match.repeat(times, 1)) & nodes.source_real.repeat(times, 1)
    found, real = over.total(right.sum(), times * nodes.source_real.sum())
    return found / real.clamp(min=1)


def _contrast(logits: Float[Tensor, "b n n"], nodes: Nodes, over: Samples) -> Float[Tensor, ""]:
    """InfoNCE both ways over the nodes that have a partner, among the nodes that are there."""
    back = torch.full_like(nodes.match, UNMATCHED)
    paired = nodes.match != UNMATCHED
    own = torch.arange(nodes.match.shape[1], device=nodes.match.device).expand_as(nodes.match)
    # Nodes without partner write to a place of their own beyond the last, which is cut off.
    back = F.pad(back, (0, 1)).scatter(1, nodes.match.masked_fill(~paired, nodes.match.shape[1]), own)[:, :-1]
    sums: list[Tensor] = []
    for case, match, real in ((logits, nodes.match, nodes.target_real), (logits.mT, back, nodes.source_real)):
        masked = case.masked_fill(~real.unsqueeze(1), NEVER)
        sums.append(F.cross_entropy(masked.flatten(0, 1), match.flatten(), ignore_index=UNMATCHED, reduction="sum"))
    total, count = over.total(torch.stack(sums).mean(), paired.sum())
    return total / count.clamp(min=1)
