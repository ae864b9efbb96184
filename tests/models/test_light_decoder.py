"""Mask tokens, and voxels laid out from channels."""

import pytest
import torch

from voxscale.models.build import build
from voxscale.models.light_decoder import MaskTokens, PyramidDecoder, TokenDecoder, light_decoder, unfold
from voxscale.models.sizes import Level
from voxscale.models.stunet import STUNetConfig
from voxscale.models.vit import ViTConfig
from voxscale.seed import torch_generator


def test_tokens_fill_hidden_places_and_leave_the_others() -> None:
    fill = MaskTokens([2, 3])
    fill.initialise(torch_generator(0))
    visible = torch.tensor([[True, False]])
    fine, coarse = fill([torch.ones(1, 2, 4), torch.ones(1, 3, 2)], visible)
    assert torch.equal(fine[..., :2], torch.ones(1, 2, 2))
    assert torch.equal(fine[0, :, 3], fill.get_parameter("token0"))
    assert torch.equal(coarse[0, :, 1], fill.get_parameter("token1"))
    assert fill.get_parameter("token1").std() > 0


def test_unfolding_undoes_the_cutting_into_patches() -> None:
    image = torch.rand(2, 1, 4, 6, 8, generator=torch_generator(0))
    patches = image.unfold(2, 2, 2).unfold(3, 3, 3).unfold(4, 4, 4).flatten(5)[:, 0].permute(0, 4, 1, 2, 3)
    assert torch.equal(unfold(patches, (2, 3, 4)), image)


@pytest.mark.parametrize("dims", [2, 3])
def test_both_kinds_make_an_image_and_train_every_weight(dims) -> None:
    flat = (1, 2, 2) if dims == 2 else (2, 2, 2)
    stay = (1, 1, 1)
    patch = (1, 4, 4) if dims == 2 else (4, 4, 4)
    size = (1, 8, 8) if dims == 2 else (8, 8, 8)
    pyramid = build(STUNetConfig(width=2, depth=1, dims=dims, strides=(flat, flat, stay, stay, stay)))
    tokens = build(ViTConfig(width=24, depth=4, attention_heads=3, patch=patch, dims=dims))
    for backbone, kind in ((pyramid, PyramidDecoder), (tokens, TokenDecoder)):
        decoder = light_decoder(backbone, 12, 1, 2)
        assert isinstance(decoder, kind)
        decoder.initialise(torch_generator(0))
        grids = [
            (1,) * (3 - dims) + tuple(n // s for n, s in zip(size[3 - dims :], level.stride, strict=True))
            for level in backbone.levels
        ]
        features = [torch.rand(2, level.channels, *grid) for level, grid in zip(backbone.levels, grids, strict=True)]
        visible = torch.zeros(2, *(1 if n == 1 else 2 for n in size), dtype=torch.bool)
        visible[..., 0] = True
        out = decoder(features, visible)
        assert out.shape == (2, 1, *size)
        out.square().mean().backward()
        assert all(p.grad is not None for p in decoder.parameters())


def test_a_level_of_an_image_has_cells_one_voxel_deep() -> None:
    decoder = PyramidDecoder((Level(2, (2, 2)),), 4, 2)
    assert decoder.cell == (1, 2, 2)
