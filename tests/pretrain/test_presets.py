"""Presets that follow a paper, and those whose batches are graphs."""

import dataclasses
import inspect
import math
import re

import pytest
import torch
from scenes import noise_scene

from configs import pretrain, probe, study
from pretrain.mixture import branches
from pretrain.network import Job, Pretraining
from pretrain.objectives.fusion_config import check
from pretrain.objectives.part_whole_config import level_of
from pretrain.objectives.volume_fusion import fuse, fuse_views
from pretrain.scene import Scene
from pretrain.source import wide_crops
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


def presets():
    """Every preset by its name."""
    found = inspect.getmembers(pretrain, inspect.isfunction)
    own = [(name, make) for name, make in found if make.__module__ == pretrain.__name__ and not name.startswith("_")]
    return {name: make for name, make in own if not inspect.signature(make).parameters}


@pytest.mark.parametrize("name", sorted(presets().keys() - {"fast_precision"}))
def test_batches_are_whole_graphs_of_neighbours_where_samples_are_matched_and_only_there(name):
    """As its command starts it: samples of a process are whole graphs, and the order of samples is by graphs."""
    make = presets()[name]
    config = make()
    graphs = config.objective.graph_matching.group if "graph_matching" in config.objective.active else 1
    assert config.stream.alike.group == config.scans.alike.group == graphs
    said = make.__doc__ or ""
    if "--processes" not in said:  # the twin's command is the other one's
        said = pretrain.resnet50_graph_matching.__doc__ if name == "resnet50_info_nce" else ""
    ranks = math.prod(int(n) for n in re.findall(r"--(?:nodes|processes) (\d+)", said))
    assert config.loop.batch % (ranks * config.engine.accumulate * graphs) == 0


@pytest.mark.parametrize(
    "make", [study.small, study.hippocampus_small, study.vertebrae_small, study.hippocampus, study.vertebrae]
)
def test_studies_match_neighbours_too(make):
    for one in (pretext.pretrain for pretext in make().pretexts):
        graphs = one.objective.graph_matching.group if "graph_matching" in one.objective.active else 1
        assert one.stream.alike.group == one.scans.alike.group == graphs
        assert one.loop.batch % graphs == 0


@pytest.mark.parametrize("name", ["graph_matching", "mixture", "masked"])
def test_probed_trainings_match_neighbours_too(name):
    config = getattr(probe, name)()
    graphs = 1 if name == "masked" else 8
    assert config.stream.alike.group == config.scans.alike.group == graphs
    assert config.loop.batch % graphs == 0


def test_the_preprint_pairs_plain_crops_of_the_batch():
    """Against the journal's defaults: no zoom, contrast, gamma or inversion; mirroring stays."""
    config, views = pretrain.stunet_s_preprint(), (64, 128, 128)
    fusion = config.objective.volume_fusion
    check(fusion, views)
    assert (fusion.levels, fusion.boxes, fusion.views_per_sample) == (4, (10, 40), 1)
    assert config.stream.spatial == config.scans.spatial
    assert (config.stream.spatial.zoom, config.stream.spatial.flip) == ((1.0, 1.0), (0.5, 0.5, 0.5))
    scene = noise_scene(samples=3, patch=(16, 16, 16))
    small = dataclasses.replace(fusion, block_min=2, block_max=(5, 10, 10))
    crops = Scene(scene.batch, scene.patch, 1, config.views).all_crops(1)
    background, foreground, label, fused = fuse_views(crops, small)
    assert torch.equal(background, scene.all_crops(1).images[:, 0])  # whose values nobody changed
    assert torch.equal(foreground, background.roll(1, 0))
    assert torch.equal(fused, fuse(background, foreground, label, 4))


def test_part_whole_starts_with_wholes_that_are_larger_than_its_crops():
    """One crop a sample, which is the whole, read from the coarser levels that `pack --levels 3` adds."""
    config = pretrain.stunet_s_part_whole()
    own = config.objective.part_whole
    assert "--levels 3" in (pretrain.stunet_s_part_whole.__doc__ or "")
    wide = wide_crops(config, 1)
    assert wide is not None
    batch, steps = config.loop.batch, config.loop.steps
    widths = [wide.factor(step * batch, seed) for step in (0, steps // 5, steps // 2, steps - 1) for seed in range(2)]
    assert widths == [4, 4, 2, 2, 1, 1, 1, 1]
    assert [level_of(own, progress, 0.5) for progress in (0.0, 0.2, 0.5, 1.0)] == [0, 1, 2, 3]
