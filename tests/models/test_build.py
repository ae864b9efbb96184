from voxscale.models.build import adapt, build, fit_strides
from voxscale.models.stunet import STUNet, STUNetConfig
from voxscale.patches import spacing_strides


def test_build_makes_the_network_of_the_config_on_the_device() -> None:
    config = STUNetConfig(width=4, depth=1, classes=2, heads=1)
    model = build(config, "meta")
    assert isinstance(model, STUNet)
    assert model.config == config
    assert all(p.is_meta for p in model.parameters())
    assert not any(p.is_meta for p in build(config).parameters())


def test_adapted_config_differs_in_inputs_and_outputs_only() -> None:
    strides = ((1, 2, 2), (2, 2, 2))
    made = adapt(STUNetConfig(width=4, depth=2), in_channels=2, classes=5, heads=3, strides=strides)
    want = (*strides, (1, 1, 1), (1, 1, 1), (1, 1, 1))
    assert made == STUNetConfig(width=4, depth=2, in_channels=2, classes=5, heads=3, strides=want)


def test_strides_change_no_weight() -> None:
    config = STUNetConfig(width=4, depth=1, classes=2, heads=2)
    strides = spacing_strides((5.0, 0.8, 0.8), (32, 128, 128), 5)
    other = adapt(config, in_channels=1, classes=2, heads=2, strides=strides)
    assert other.strides != config.strides
    assert build(other).load_state_dict(build(config).state_dict(), strict=True)


def test_surplus_strides_are_left_out_and_lacking_ones_keep_the_resolution() -> None:
    assert fit_strides([(2, 2, 2)] * 7, 5) == ((2, 2, 2),) * 5
    assert fit_strides([(1, 2, 2)], 3) == ((1, 2, 2), (1, 1, 1), (1, 1, 1))
