"""Graphs of tokens: the match is that of the geometry, whatever the order of nodes; lacking tokens do not count."""

import dataclasses

import pytest
import torch
from graphs import relabelled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.graph_heads import GraphMatchingHeads
from pretrain.objectives.patch_graphs import _take, build_problem, patch_matching
from voxscale.errors import ConfigError
from voxscale.matching.dustbin import UNMATCHED
from voxscale.matching.true_match import Nodes, cells, choose_nodes, places, true_match
from voxscale.seed import torch_generator

SIZE, GRID, CHANNELS = (8, 8, 8), (4, 4, 4), 12
CONFIG = GraphMatchingConfig(mode="patch", nodes=24, k=4, width=16, gumbel_scale=0.0, info_nce_weight=1.0)


def two_views(flip: bool = True, shift: float = 2.0) -> tuple[Tensor, Tensor]:
    first = torch.eye(3, 4, dtype=torch.float64)
    second = torch.diag(torch.tensor([1.0, 1.0, -1.0 if flip else 1.0], dtype=torch.float64))
    start = torch.tensor([shift, 0.0, 7.0 if flip else 0.0], dtype=torch.float64)
    return first[None], torch.cat([second, start[:, None]], dim=1)[None]


def case(seed: int, noise: float, flip: bool = True):
    """Features that tell the place, as far as noise lets them; nodes; places in mm."""
    generator = torch_generator(seed, "case")
    maps = [cells(view, SIZE, GRID) for view in two_views(flip)]
    truth = true_match(maps[0], maps[1], (GRID, GRID))
    keys = [torch.rand(1, 64, generator=generator) for _ in range(2)]
    nodes = choose_nodes(truth, CONFIG.nodes, 0.25, (keys[0], keys[1]))
    spots = [places(m, GRID) for m in maps]
    waves = torch.randn(3, CHANNELS, generator=generator, dtype=torch.float64)
    features = [(0.7 * s @ waves).sin().float() for s in spots]
    features = [f + noise * torch.randn(f.shape, generator=generator) for f in features]
    return tuple(f.mT.unflatten(2, GRID).requires_grad_() for f in features), tuple(spots), nodes


def heads(config: GraphMatchingConfig = CONFIG) -> GraphMatchingHeads:
    made = GraphMatchingHeads(CHANNELS, config)
    made.initialise(torch_generator(1))
    return made


@pytest.mark.parametrize("flip", [False, True])
def test_clear_features_are_matched_as_the_geometry_says(flip: bool) -> None:
    maps, spots, nodes = case(0, 0.0, flip)
    made = heads(dataclasses.replace(CONFIG, gnn="none"))
    torch.nn.init.eye_(made.projector.weight)
    with torch.no_grad():
        made.dustbin.fill_(0.45)
    config = dataclasses.replace(CONFIG, gnn="none", edge_weight=0.2, truth_candidate=False)
    losses = patch_matching(maps, spots, nodes, made, config, torch_generator(2))
    assert float(losses.watched["retrieval"]) == 1.0
    assert float(losses.watched["match_accuracy"]) == 1.0
    assert float(losses.terms["matching"].detach()) == pytest.approx(0.0, abs=1e-5)
    # Without a price for nodes that stay unmatched, those that are alone are matched with each other.
    with torch.no_grad():
        made.dustbin.fill_(-2.0)
    wrong = patch_matching(maps, spots, nodes, made, config, torch_generator(2))
    assert float(wrong.watched["match_accuracy"]) < 0.9
    wrong.terms["matching"].backward()
    assert made.dustbin.grad.item() < 0  # a step raises the price


def shuffled(nodes: Nodes, rows: Tensor, columns: Tensor) -> Nodes:
    match = columns.argsort()[nodes.match.clamp(min=0)].masked_fill(nodes.match == UNMATCHED, UNMATCHED)
    return Nodes(
        source=nodes.source[:, rows],
        target=nodes.target[:, columns],
        source_real=nodes.source_real[:, rows],
        target_real=nodes.target_real[:, columns],
        match=match[:, rows],
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_tokens_changes_neither_what_is_solved_nor_the_other_terms(seed: int) -> None:
    maps, spots, nodes = case(seed, 1.0)
    rows, columns = (torch.randperm(24, generator=torch_generator(seed, side)) for side in "st")
    made, orders = heads(), (nodes, shuffled(nodes, rows, columns))
    for name in ("variance", "info_nce", "retrieval", "paired"):
        found = [patch_matching(maps, spots, one, made, CONFIG, torch_generator(2)) for one in orders]
        one, other = ((losses.terms | losses.watched)[name] for losses in found)
        torch.testing.assert_close(one, other)
    first, second = (
        build_problem(
            [made.projector(_take(m.flatten(2).mT, at)) for m, at in zip(maps, (one.source, one.target), strict=True)],
            [_take(s, at) for s, at in zip(spots, (one.source, one.target), strict=True)],
            one,
            made,
            CONFIG,
        )
        for one in orders
    )
    wanted = relabelled(first, rows, columns)
    for part in ("vertex", "edge", "source", "target"):
        torch.testing.assert_close(getattr(second, part), getattr(wanted, part), atol=1e-5, rtol=1e-5)


def test_places_that_no_token_was_left_for_change_nothing() -> None:
    maps, spots, nodes = case(3, 1.0)
    more = dataclasses.replace(CONFIG, nodes=40, variance_weight=0.0)
    empty = torch.zeros(1, 16, dtype=torch.long)
    padded = Nodes(
        source=torch.cat([nodes.source, empty], 1),
        target=torch.cat([nodes.target, empty + 5], 1),
        source_real=torch.nn.functional.pad(nodes.source_real, (0, 16)),
        target_real=torch.nn.functional.pad(nodes.target_real, (0, 16)),
        match=torch.nn.functional.pad(nodes.match, (0, 16), value=UNMATCHED),
    )
    one = patch_matching(maps, spots, nodes, heads(), dataclasses.replace(more, nodes=24), torch_generator(2))
    other = patch_matching(maps, spots, padded, heads(), more, torch_generator(2))
    torch.testing.assert_close(one.terms["matching"] * 24, other.terms["matching"] * 40, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.terms["info_nce"], other.terms["info_nce"])
    for name in ("match_accuracy", "map_accuracy", "retrieval"):
        torch.testing.assert_close(one.watched[name], other.watched[name])


def test_training_finds_the_match_and_a_price() -> None:
    config = dataclasses.replace(CONFIG, gnn="none", gumbel_scale=1.0, info_nce_weight=0.0, variance_weight=0.0)
    made, first, last = heads(config), [], []
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    for step in range(60):
        maps, spots, nodes = case(step % 4, 0.5)
        maps = tuple(m.detach() for m in maps)
        losses = patch_matching(maps, spots, nodes, made, config, torch_generator(step))
        (first if step < 8 else last).append(float(losses.watched["map_accuracy"]))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert sum(last[-8:]) / 8 > sum(first) / 8 + 0.1
    assert made.dustbin.item() > 0.05


def test_the_twin_without_matching_has_a_projector_alone() -> None:
    config = dataclasses.replace(CONFIG, matching_weight=0.0, variance_weight=0.0)
    maps, spots, nodes = case(0, 0.3)
    made = heads(config)
    assert {name for name, _ in made.named_parameters()} == {"projector.weight", "projector.bias"}
    losses = patch_matching(maps, spots, nodes, made, config, torch_generator(2))
    assert losses.terms.keys() == {"info_nce"}
    # By loops over the definition.
    z = [made.projector(m.flatten(2).mT[0, at[0]]) for m, at in zip(maps, (nodes.source, nodes.target), strict=True)]
    logits = torch.nn.functional.normalize(z[0], dim=1) @ torch.nn.functional.normalize(z[1], dim=1).T / 0.1
    pairs = [(i, a) for i, a in enumerate(nodes.match[0].tolist()) if a != UNMATCHED]
    each = [logits[i].logsumexp(0) + logits[:, a].logsumexp(0) - 2 * logits[i, a] for i, a in pairs]
    torch.testing.assert_close(losses.terms["info_nce"], torch.stack(each).mean() / 2)


@pytest.mark.parametrize(
    ("field", "value"), [("nodes", 300), ("k", 64), ("unmatched", 0.6), ("flips", (0.0, 2.0, 0.0)), ("lambda_", 1.0)]
)
def test_bad_config_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^objective\.{field} must"):
        GraphMatchingConfig(mode="patch", **{field: value})
