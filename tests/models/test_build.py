from voxscale.models.build import ModelConfig, build
from voxscale.models.stunet import STUNet


def test_build_makes_the_network_of_the_config_on_the_device() -> None:
    config = ModelConfig(width=4, depth=1, classes=2, heads=1)
    model = build(config, "meta")
    assert isinstance(model, STUNet)
    assert model.config == config
    assert all(p.is_meta for p in model.parameters())
    assert not any(p.is_meta for p in build(config).parameters())
