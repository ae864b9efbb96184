import math

import pytest
import torch

from voxscale.errors import ConfigError
from voxscale.models.vit import ViT, ViTConfig, rotary_angles, rotate
from voxscale.seed import torch_generator


def test_angles_by_hand() -> None:
    angles = rotary_angles((1, 2, 3), 14, 100.0)
    # Seven pairs: two for each axis, of 1 and 1/10 radian per place, and one that is never turned.
    assert angles.shape == (6, 7)
    torch.testing.assert_close(angles[5], torch.tensor([0.0, 0.0, 1.0, 0.1, 2.0, 0.2, 0.0]))
    turned = rotate(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([[math.pi / 2]]))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 1.0]))


def test_logits_depend_on_differences_of_places_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 24, generator=torch_generator(0), dtype=torch.float64)
    grid = (5, 6, 7)
    angles = rotary_angles(grid, 24, 100.0).double()

    def logit(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        i, j = ((z * 6 + y) * 7 + x for z, y, x in (a, b))
        return (rotate(q, angles[i : i + 1]) * rotate(k, angles[j : j + 1])).sum().item()

    assert logit((0, 1, 2), (2, 0, 3)) == pytest.approx(logit((2, 4, 4), (4, 3, 5)))
    assert logit((0, 1, 2), (2, 0, 3)) != pytest.approx(logit((0, 1, 2), (2, 0, 4)), rel=1e-3)


def test_patch_embedding_is_a_product_with_each_patch() -> None:
    model = ViT(ViTConfig(width=12, depth=4, attention_heads=2, patch=(2, 4, 4)))
    x = torch.randn(1, 1, 4, 8, 8, generator=torch_generator(0))
    patches = x.view(2, 2, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(8, -1)
    want = patches @ model.patch_embed.weight.flatten(1).T + model.patch_embed.bias
    torch.testing.assert_close(model.patch_embed(x).flatten(2)[0].T, want)


def test_tokens_are_registers_then_places() -> None:
    model = ViT(ViTConfig(width=12, depth=4, attention_heads=2, patch=(4, 4, 4), registers=3))
    x = torch.randn(2, 1, 4, 8, 8, generator=torch_generator(0))
    tokens = model.tokens(x)
    assert (tokens.values.shape, tokens.prefix, tokens.grid) == ((2, 7, 12), 3, (1, 2, 2))
    placed = tokens.values[:, 3:].transpose(1, 2).reshape(2, 12, 1, 2, 2)
    assert torch.equal(placed, model.features(x)[-1])


@pytest.mark.parametrize("changes", [{"depth": 6}, {"width": 13}, {"patch": (0, 4, 4)}, {"rope_base": 1.0}])
def test_bad_config_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.{next(iter(changes))} must be"):
        ViTConfig(**{"width": 12, "depth": 4, "attention_heads": 2, **changes})
