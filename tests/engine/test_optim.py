"""Parameter groups: every weight in one of them, decay told by the kind of layer, rates by hand."""

import dataclasses

import pytest
import torch
from models.presets import PRESETS, preset
from torch import nn

from voxscale.engine.config import OptimConfig
from voxscale.engine.optim import build_optimizer, layers_by_name, parameter_groups
from voxscale.errors import ConfigError
from voxscale.models.build import build
from voxscale.models.vit import ViTConfig

CONFIG = OptimConfig(weight_decay=0.1, layer_decay=0.5, head_lr=3.0)
HEADLESS = dataclasses.replace(CONFIG, head_lr=1.0)
DECAYED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def by_name(model: nn.Module, config: OptimConfig, heads: tuple[str, ...] = ()) -> dict[str, tuple[float, float]]:
    """(weight decay, factor of the rate) of each parameter."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (names[id(p)], (group["weight_decay"], group["lr_scale"]))
        for group in parameter_groups(model, config, heads)
        for p in group["params"]
    ]
    assert len(found) == len(dict(found)) == len(names)  # each once
    return dict(found)


@pytest.mark.parametrize("name", PRESETS)
def test_only_weights_of_convolutions_and_linear_layers_decay_and_layers_have_their_rates(name):
    model = build(preset(name), "meta")
    found = by_name(model, CONFIG if model.head_prefixes else HEADLESS)
    want = {f"{at}.weight" for at, module in model.named_modules() if isinstance(module, DECAYED)}
    first = {id(p): key for key, p in model.named_parameters()}  # a weight may stand at several places
    want = {first[id(model.get_parameter(key))] for key in want}
    assert {key for key, (decay, _) in found.items() if decay} == want
    assert {decay for decay, _ in found.values()} == {0.0, 0.1}
    heads = {key for key in found if key.startswith(model.head_prefixes or "\0")}
    assert bool(heads) == bool(model.decoder_levels)
    assert {found[key][1] for key in heads} <= {3.0}
    rates = {found[key][1] for key in found if key not in heads}
    assert rates == {0.5**n for n in range(len(rates))}  # each layer half of that above, none left out
    assert {found[key][1] for key in model.input_weights} == {min(rates)}


def test_rates_by_hand():
    vit = by_name(build(preset("vit_b"), "meta"), HEADLESS)  # patches, 12 blocks, the last norm
    assert vit["norm.weight"] == (0.0, 1.0)
    assert vit["blocks.11.qkv.weight"] == (0.1, 0.5)
    assert vit["blocks.0.qkv.bias"] == (0.0, 0.5**12)
    assert vit["registers"] == (0.0, 0.5**13)
    assert vit["patch_embed.weight"] == (0.1, 0.5**13)
    timm = by_name(build(preset("vit_b_timm"), "meta"), HEADLESS)
    assert timm["net.pos_embed"] == timm["net.cls_token"] == (0.0, 0.5**13)
    resnet = by_name(build(preset("resnet50"), "meta"), HEADLESS)
    assert resnet["net.conv1.weight"] == (0.1, 0.5**4)
    assert resnet["net.layer4.2.bn3.weight"] == (0.0, 1.0)


class Student(nn.Module):
    """What an objective trains: not a backbone itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 2, 1)
        self.blocks = nn.Sequential(nn.Conv3d(2, 2, 1), nn.Sequential(nn.Conv3d(2, 2, 1), nn.GroupNorm(1, 2)))
        self.head = nn.Linear(2, 3)


def test_other_models_are_numbered_by_their_names():
    model = Student()
    layers = layers_by_name(model)
    assert layers == {
        "stem.weight": 0,
        "stem.bias": 0,
        "blocks.0.weight": 1,
        "blocks.0.bias": 1,
        "blocks.1.0.weight": 2,
        "blocks.1.0.bias": 2,
        "blocks.1.1.weight": 2,
        "blocks.1.1.bias": 2,
        "head.weight": 3,
        "head.bias": 3,
    }
    found = by_name(model, CONFIG, ("head.",))
    assert found["head.weight"] == (0.1, 3.0)
    assert found["blocks.1.0.weight"] == (0.1, 1.0)
    assert found["blocks.1.1.weight"] == (0.0, 1.0)
    assert found["stem.bias"] == (0.0, 0.25)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_step_without_gradient_shrinks_what_decays_and_nothing_else(kind):
    model = build(ViTConfig(width=12, depth=4, attention_heads=2, patch=(4, 4, 4)))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = build_optimizer(model, OptimConfig(kind=kind, lr=0.5, weight_decay=0.1, momentum=0.0001))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert shrunk == {name for name, p in model.named_parameters() if p.ndim > 1 and name != "registers"}
    for name in shrunk:
        torch.testing.assert_close(model.get_parameter(name), torch.full_like(model.get_parameter(name), 0.95))


def test_frozen_parameters_are_in_no_group():
    model = Student()
    model.stem.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, HEADLESS)) == 8


def test_a_rate_of_heads_is_refused_where_there_are_none():
    with pytest.raises(ConfigError, match=r"^optim\.head_lr must be 1 for a network without heads, not 3\.0$"):
        parameter_groups(build(preset("vit_b"), "meta"), CONFIG)
    frozen = Student()
    frozen.head.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"optim\.head_lr"):
        parameter_groups(frozen, CONFIG, ("head.",))
