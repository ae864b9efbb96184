import pytest

from voxscale.errors import ConfigError
from voxscale.models.build import adapt, build, fit_strides, spacing_strides
from voxscale.models.stunet import STUNet, STUNetConfig


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


@pytest.mark.parametrize(
    ("spacing", "patch", "strides"),
    [
        ((1, 1, 1), (128, 128, 128), [(2, 2, 2)] * 5),
        # z is left alone until x and y are nearly as coarse
        ((5, 1, 1), (32, 128, 128), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((1.9, 1, 1), (64, 64, 64), [(2, 2, 2)] * 4 + [(1, 1, 1)]),
        ((2, 1, 1), (64, 128, 128), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        # an axis of fewer than eight voxels is not halved and does not hold the others back
        ((1, 1, 1), (8, 64, 64), [(2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1)]),
    ],
)
def test_strides_of_a_spacing_by_hand(spacing: tuple, patch: tuple, strides: list) -> None:
    assert list(spacing_strides(spacing, patch, 5)) == strides


def test_surplus_strides_are_left_out_and_lacking_ones_keep_the_resolution() -> None:
    assert fit_strides([(2, 2, 2)] * 7, 5) == ((2, 2, 2),) * 5
    assert fit_strides([(1, 2, 2)], 3) == ((1, 2, 2), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(("spacing", "patch"), [((0, 1, 1), (8, 8, 8)), ((1, 1), (8, 8, 8)), ((1, 1, 1), (8, 0, 8))])
def test_bad_spacing_or_patch_is_refused(spacing: tuple, patch: tuple) -> None:
    with pytest.raises(ConfigError, match=r"^(spacing|patch) must be three positive numbers"):
        spacing_strides(spacing, patch, 5)
