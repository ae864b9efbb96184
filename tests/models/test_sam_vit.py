import math

import pytest
import torch

from voxscale.errors import ConfigError
from voxscale.models.optional import load
from voxscale.models.sam_vit import SamViT, SamViTConfig
from voxscale.seed import torch_generator

SMALL = SamViTConfig(width=16, depth=4, attention_heads=2, window=3, global_blocks=(1, 3), places=7, neck=6)


def test_defaults_are_timms_network_by_name() -> None:
    with torch.device("meta"):
        theirs = {
            f"net.{name}": p.shape
            for name, p in load("timm", "timm").create_model("samvit_base_patch16", num_classes=0).named_parameters()
        }
    ours = {name: p.shape for name, p in SamViT(SamViTConfig(), "meta").named_parameters()}
    assert ours == theirs
    assert sum(math.prod(shape) for shape in ours.values()) == 89_670_912  # as timm's table of models says


@pytest.mark.parametrize("size", [(112, 112), (48, 160)])  # that of the tables, and one that interpolates them
def test_last_features_are_timms(size: tuple[int, int]) -> None:
    model = SamViT(SMALL)
    model.initialise(torch_generator(0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch_generator(p.numel())))
    assert type(model.net).__module__ == "timm.models.vision_transformer_sam"
    x = torch.randn(2, 3, *size, generator=torch_generator(1))
    torch.testing.assert_close(model.features(x)[-1], model.net(x))
    tokens = model.tokens(x)
    assert (tokens.prefix, tokens.grid) == (0, (size[0] // 16, size[1] // 16))
    placed = tokens.values.reshape(2, *tokens.grid, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.net.neck(placed), model.features(x)[-1])


@pytest.mark.parametrize("changes", [{"depth": 6}, {"width": 15}, {"global_blocks": (4,)}, {"window": 0}])
def test_bad_config_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.{next(iter(changes))} must be"):
        SamViTConfig(**{"width": 16, "depth": 4, "attention_heads": 2, "global_blocks": (1, 3), **changes})
