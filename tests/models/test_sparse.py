"""What is visible does not depend on what is hidden: the features are those of the visible part cut out."""

import dataclasses
import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from voxscale.errors import ConfigError
from voxscale.models.build import ModelConfig, build
from voxscale.models.fmunet import FMUNetConfig
from voxscale.models.interface import Backbone
from voxscale.models.nnunet import NNUNetConfig
from voxscale.models.pctnet import PCTNetConfig
from voxscale.models.sparse import hide, spread
from voxscale.models.stunet import STUNetConfig
from voxscale.models.swin_unetr import SwinUNETRConfig
from voxscale.models.timm_models import TimmConfig
from voxscale.models.vit import ViTConfig
from voxscale.seed import torch_generator

STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
FLAT = ((1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
CHANNELS = (2, 3, 4, 4, 4, 4)
KINDS: dict[str, ModelConfig] = {
    "stunet": STUNetConfig(width=2, depth=1, strides=STRIDES),
    "stunet_2d": STUNetConfig(width=2, depth=1, strides=FLAT, dims=2),
    "resenc": NNUNetConfig(residual=True, channels=CHANNELS, blocks=(1,) * 6, decoder_blocks=1, strides=STRIDES),
    "plainconv": NNUNetConfig(residual=False, channels=CHANNELS, blocks=(1,) * 6, decoder_blocks=1, strides=STRIDES),
    "fmunet": FMUNetConfig(channels=(2, 2, 3, 3, 4), depth=1, flat_levels=2),
    "resnet50": TimmConfig(name="resnet50", in_channels=1),
    "vit": ViTConfig(width=36, depth=4, attention_heads=3, patch=(4, 8, 8)),
    "vit_2d": ViTConfig(width=24, depth=4, attention_heads=3, patch=(1, 8, 8), dims=2),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def model(name: str) -> Backbone:
    """In training, so that batch norms look at the batch; without dropout."""
    made = build(KINDS[name])
    if name == "resnet50":  # whose residual branches begin at zero
        made.initialise(torch_generator(1))
        for key, p in made.named_parameters():
            if key.endswith("bn3.weight"):
                nn.init.constant_(p, 0.5)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def half(name: str) -> tuple[Tensor, Tensor, int]:
    """An image, blocks of which the first half along x is visible, and the voxels of this half."""
    made = model(name)
    step = made.levels[-1].stride
    size = (*(2 * n for n in step[:-1]), 4 * step[-1])
    x = torch.rand(2, 1, *size, generator=torch_generator(0, "image"))
    visible = torch.zeros(2, *(n // s for n, s in zip(size, step, strict=True)), dtype=torch.bool)
    visible[..., :2] = True
    return x, visible, size[-1] // 2


@pytest.mark.parametrize(("name", "last"), [*((name, False) for name in KINDS), ("stunet", True)])
def test_features_are_those_of_the_visible_part_alone(name: str, last: bool) -> None:
    made, (x, visible, middle) = model(name), half(name)
    part = x[..., :middle]
    if last:
        layout = torch.channels_last_3d if made.dims == 3 else torch.channels_last
        x, part = x.contiguous(memory_format=layout), part.contiguous(memory_format=layout)
    found = made.visible_features(x, visible)
    other = x.clone()
    other[..., middle:] = float("nan")
    for one, again, alone in zip(found, made.visible_features(other, visible), made.features(part), strict=True):
        wide = one.shape[-1] // 2
        torch.testing.assert_close(one[..., :wide], alone, rtol=1e-4, atol=1e-4)
        assert torch.equal(one, again)
        assert not one[..., wide:].any()
    assert all("forward" not in vars(module) for module in made.modules())


def test_a_vit_reads_the_visible_tokens_alone_at_their_places() -> None:
    made, (x, visible, _) = model("vit"), half("vit")
    moved = made.visible_features(x.roll(1, dims=-1), visible.roll(1, dims=-1))[-1]
    assert moved.any(dim=1).sum() == visible.sum()
    counted: list[int] = []
    hook = made.blocks[0].register_forward_hook(lambda _, inputs, __: counted.append(inputs[0].shape[1]))
    made.visible_features(x, visible)
    hook.remove()
    assert counted == [int(visible[0].sum()) + made.config.registers]
    size = x.shape[2:]
    assert made.visible_flops(size, 1.0) == made.encoder_flops(size) > made.visible_flops(size, 0.5)


def test_batch_norms_count_visible_places_alone() -> None:
    norm = nn.Sequential(nn.BatchNorm3d(1, momentum=1.0))
    visible = torch.tensor([True, False]).view(1, 1, 1, 2)
    x = torch.tensor([1.0, 3.0, 50.0, 70.0]).view(1, 1, 1, 1, 4)
    with hide(norm, visible):
        y = norm(x)
    torch.testing.assert_close(y.flatten(), torch.tensor([-1.0, 1.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    assert norm[0].running_mean.item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["stunet", "vit"])
def test_recomputed_stages_are_hidden_from_again(name: str) -> None:
    config, (x, visible, _) = KINDS[name], half(name)
    found: list[dict[str, Tensor]] = []
    for stages in ((), tuple(range(len(model(name).levels)))):
        made = build(dataclasses.replace(config, checkpoint_stages=stages))
        sum(f.square().mean() for f in made.visible_features(x, visible)).backward()
        found.append({key: p.grad for key, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][key])


def test_blocks_spread_over_finer_grids() -> None:
    visible = torch.tensor([[True, False], [False, True]]).unsqueeze(0)
    want = [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert spread(visible, (2, 4))[0].int().tolist() == want


@pytest.mark.parametrize(
    "config", [SwinUNETRConfig(width=12), PCTNetConfig(), TimmConfig(name="convnext_atto")], ids=lambda c: c.kind
)
def test_networks_that_mix_places_otherwise_are_refused(config: ModelConfig) -> None:
    made = build(config, "meta")
    with pytest.raises(ConfigError, match=r"^model must be one with features of visible parts: STU-Net.*, not"):
        made.visible_features(torch.empty(1, device="meta"), torch.empty(1, device="meta"))
