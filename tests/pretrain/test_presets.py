"""Presets that follow a paper."""

import dataclasses

import pytest
from scenes import noise_scene

from configs import pretrain
from pretrain.mixture import branches
from pretrain.network import Job, Pretraining
from voxscale.models.build import build
from voxscale.seed import torch_generator


@pytest.mark.parametrize("name", ["resnet50_graph_matching", "resnet50_info_nce"])
def test_a_step_of_the_papers_network_moves_all_that_its_objective_has(name):
    config = getattr(pretrain, name)()
    backbone = build(config.model)
    network = Pretraining(backbone, branches(config.objective, backbone))
    network.initialise(torch_generator(0, "weights"))
    plans = network.plans(noise_scene(samples=16, patch=(1, 64, 64)))
    terms = network(Job(plans, dict.fromkeys(plans, 1.0)))["terms"]
    assert len(terms) == 1
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in network.branches.parameters())
    assert next(backbone.parameters()).grad.abs().sum() > 0


def test_the_twin_differs_in_its_terms_alone():
    matching, twin = pretrain.resnet50_graph_matching(), pretrain.resnet50_info_nce()
    ours, theirs = (dataclasses.asdict(one.objective.graph_matching) for one in (matching, twin))
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ == {"matching_weight", "info_nce_weight"}
    assert dataclasses.replace(twin, objective=matching.objective) == matching
    graph = matching.objective.graph_matching
    assert (graph.group, graph.k, graph.lambda_, graph.alpha, graph.gumbel_scale) == (16, 5, 80, 0.8, 1)
