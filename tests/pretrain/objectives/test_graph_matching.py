import dataclasses

import pytest
import torch
from torch.nn import functional as F

from pretrain.objectives.graph_config import GraphMatchingConfig, paper
from pretrain.objectives.graph_heads import GraphMatchingHeads
from pretrain.objectives.sample_graphs import graph_matching
from voxscale.errors import ConfigError, DataError
from voxscale.losses.info_nce import info_nce
from voxscale.losses.variance import variance_loss
from voxscale.seed import torch_generator

SMALL = GraphMatchingConfig(group=8, k=3, width=16)


def case(samples: int = 16, dims: int = 2, channels: int = 6):
    generator = torch_generator(0, "case", dims)
    maps = [torch.randn(samples, channels, *[3] * dims, generator=generator).requires_grad_() for _ in range(2)]
    places = tuple(20 * torch.rand(samples, dims, *[3] * dims, generator=generator) for _ in range(2))
    return maps, places


def heads(config: GraphMatchingConfig, channels: int = 6) -> GraphMatchingHeads:
    made = GraphMatchingHeads(channels, config)
    made.initialise(torch_generator(1))
    return made


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", ["image", "sub_volume"])
@pytest.mark.parametrize("gnn", ["gcn", "graph_conv", "none"])
def test_every_mode_has_finite_losses_and_gradients(dims: int, mode: str, gnn: str) -> None:
    config = dataclasses.replace(SMALL, mode=mode, gnn=gnn, info_nce_weight=1.0, num_samples=2)
    (first, second), places = case(dims=dims)
    scans = torch.arange(16) // 4
    made = heads(config)
    losses = graph_matching(first, second, places, made, config, torch_generator(2), scans)
    losses.total.backward()
    assert losses.terms.keys() == {"matching", "variance", "info_nce"}
    assert losses.watched.keys() == {"retrieval", "embedding_std", "match_accuracy", "map_accuracy"}
    assert all(torch.isfinite(p.grad).all() for p in (first, second, *made.parameters()))
    assert first.grad.any()


@pytest.mark.parametrize("mode", ["image", "sub_volume"])
@pytest.mark.parametrize("gnn", ["gcn", "graph_conv", "none"])
def test_the_order_of_samples_in_a_graph_changes_no_term(mode: str, gnn: str) -> None:
    config = dataclasses.replace(SMALL, mode=mode, gnn=gnn, info_nce_weight=1.0, gumbel_scale=0.0)
    maps, places = case()
    scans, made = torch.arange(16) // 4, heads(config)
    order = torch.cat([torch.randperm(8, generator=torch_generator(9, g)) + 8 * g for g in range(2)])
    one = graph_matching(*maps, places, made, config, torch_generator(2), scans)
    moved = [part[order] for part in (*maps, *places)]
    other = graph_matching(*moved[:2], (moved[2], moved[3]), made, config, torch_generator(2), scans[order])
    assert one.terms.keys() == {"matching", "variance", "info_nce"}
    for name, value in (one.terms | one.watched).items():
        torch.testing.assert_close((other.terms | other.watched)[name], value, atol=1e-5, rtol=1e-5)
    assert one.terms["matching"].item() > 0
    # Nodes of one view alone in another order: the true match is another one.
    wrong = graph_matching(maps[0], moved[1], (places[0], moved[3]), made, config, torch_generator(2), scans)
    assert abs(wrong.terms["info_nce"].item() - one.terms["info_nce"].item()) > 1e-3


def test_paper_has_one_term_and_the_twin_no_solver() -> None:
    (first, second), places = case()
    whole = graph_matching(first, second, places, heads(paper()), paper(), torch_generator(2))
    assert whole.terms.keys() == {"matching"}
    twin = dataclasses.replace(SMALL, matching_weight=0.0, variance_weight=0.0, info_nce_weight=1.0)
    losses = graph_matching(first, second, places, heads(twin), twin, torch_generator(2))
    assert losses.terms.keys() == {"info_nce"}
    assert "match_accuracy" not in losses.watched


def test_info_nce_equals_cross_entropy_and_variance_its_formula() -> None:
    first, second = (torch.randn(1, 5, 4, generator=torch_generator(s)) for s in range(2))
    logits = F.normalize(first[0], dim=1) @ F.normalize(second[0], dim=1).T / 0.2
    want = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(info_nce(first, second, 0.2), want)
    assert variance_loss(torch.tensor([[1.0, 5.0], [1.0, -5.0]])).item() == pytest.approx((1 - 0.01) / 2)


@pytest.mark.slow
def test_variance_term_pulls_a_collapsed_projector_apart() -> None:
    (first, second), places = case()
    deviations = {}
    for weight in (25.0, 0.0):  # 25 as in VICReg
        config = dataclasses.replace(SMALL, variance_weight=weight)
        made = heads(config)
        with torch.no_grad():
            made.projector.weight.mul_(1e-3)
        # A short memory: cosines of vectors close to 0 have huge gradients, after which Adam would stand still.
        optimiser = torch.optim.Adam(made.parameters(), 1e-2, betas=(0.9, 0.9))
        for step in range(160):
            losses = graph_matching(first.detach(), second.detach(), places, made, config, torch_generator(step))
            deviations.setdefault(weight, []).append(losses.watched["embedding_std"].item())
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
    assert deviations[25.0][0] < 1e-2
    assert deviations[25.0][-1] > 0.3
    assert deviations[25.0][-1] > 3 * deviations[0.0][-1]


def test_training_improves_retrieval() -> None:
    config = dataclasses.replace(SMALL, gnn="none", alpha=1.0, variance_weight=0.0, num_samples=4, watch_map=False)
    generator, made = torch_generator(5), heads(config, channels=24)
    noise = torch.cat([torch.full((8,), 0.2), torch.full((16,), 2.0)]).view(1, 24, 1, 1)

    def views(samples: int):
        truth = torch.randn(samples, 24, 1, 1, generator=generator)
        return [truth + noise * torch.randn(truth.shape, generator=generator) for _ in range(2)]

    def step(samples: int):
        places = torch.zeros(samples, 2, 1, 1)
        return graph_matching(*views(samples), (places, places), made, config, generator)

    with torch.no_grad():
        before = step(800).watched["retrieval"]
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        step(64).total.backward()
        optimiser.step()
    with torch.no_grad():
        assert step(800).watched["retrieval"] > before + 0.1


def test_bad_input_is_named() -> None:
    (first, second), places = case()
    with pytest.raises(DataError, match="^views must be"):
        graph_matching(first[:9], second[:9], places, heads(SMALL), SMALL, torch_generator(0))
    config = dataclasses.replace(SMALL, mode="sub_volume")
    with pytest.raises(DataError, match="^scans must"):
        graph_matching(first, second, places, heads(config), config, torch_generator(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("group", 3), ("k", 16), ("alpha", 1.1), ("num_samples", 0), ("lambda_", 0.0), ("edge_weight", -1.0)],
)
def test_bad_config_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^objective\.{field} must"):
        GraphMatchingConfig(**{field: value})
