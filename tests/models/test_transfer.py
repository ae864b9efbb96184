import json

import pytest
import torch
from torch import Tensor

from voxscale.errors import CheckpointError
from voxscale.models.stunet import STUNet, STUNetConfig
from voxscale.models.transfer import transfer
from voxscale.seed import torch_generator

STRIDES = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
HEADS = ("seg_outputs.",)
FIRST = "conv_blocks_context.0.0.conv1.weight"
SHORTCUT = "conv_blocks_context.0.0.conv3.weight"


def make(seed: int, **changes: int) -> STUNet:
    model = STUNet(STUNetConfig(**{"width": 2, "depth": 1, "classes": 3, "heads": 2, **changes}, strides=STRIDES))
    model.initialise(torch_generator(seed))
    return model


def copies(model: STUNet) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def test_all_but_the_heads_are_copied() -> None:
    source, target = make(0, heads=3, classes=5), make(1)
    before = copies(target)
    report = transfer(target, source.state_dict(), fresh=HEADS)
    after, given = target.state_dict(), source.state_dict()
    heads = [key for key in after if key.startswith("seg_outputs.")]
    assert len(heads) == 4
    assert set(report.reinitialised) == set(heads)
    assert all(torch.equal(after[key], before[key]) for key in heads)
    assert set(report.loaded) == set(after) - set(heads)
    assert all(torch.equal(after[key], given[key]) for key in report.loaded)
    assert set(report.unused) == {f"seg_outputs.{u}.{kind}" for u in (2, 3, 4) for kind in ("weight", "bias")}
    assert report.repeated == ()


def test_heads_that_fit_are_copied_only_by_wish() -> None:
    source = make(0)
    target = make(1)
    transfer(target, source.state_dict(), fresh=HEADS)
    key = "seg_outputs.4.weight"
    assert not torch.equal(target.state_dict()[key], source.state_dict()[key])
    report = transfer(target, source.state_dict(), fresh=())
    assert torch.equal(target.state_dict()[key], source.state_dict()[key])
    assert (report.reinitialised, report.unused) == ((), ())


def test_whole_parts_can_start_anew() -> None:
    decoder = ("seg_outputs.", "upsample_layers.", "conv_blocks_localization.")
    encoder = {key: tensor for key, tensor in make(0).state_dict().items() if key.startswith("conv_blocks_context.")}
    target = make(1)
    report = transfer(target, encoder, fresh=decoder)
    assert set(report.loaded) == set(encoder)
    assert set(report.reinitialised) == set(target.state_dict()) - set(encoder)


def test_module_prefix_is_ignored() -> None:
    source, target = make(0), make(1)
    report = transfer(target, {f"module.{key}": tensor for key, tensor in source.state_dict().items()}, fresh=())
    assert set(report.loaded) == set(target.state_dict())
    assert torch.equal(target.state_dict()[FIRST], source.state_dict()[FIRST])


@pytest.mark.parametrize("channels", [2, 3])
def test_equal_channels_give_the_activations_of_the_single_one(channels: int) -> None:
    source, target = make(0), make(1, in_channels=channels)
    report = transfer(target, source.state_dict(), fresh=HEADS)
    assert report.repeated == (FIRST, SHORTCUT)
    assert {FIRST, SHORTCUT} <= set(report.loaded)
    x = torch.randn(1, 1, 8, 8, 8, generator=torch_generator(2))
    for one, many in zip(source.features(x), target.features(x.expand(-1, channels, -1, -1, -1)), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


def test_number_type_of_the_model_is_kept() -> None:
    source, target = make(0), make(1).double()
    transfer(target, {key: tensor.bfloat16() for key, tensor in source.state_dict().items()}, fresh=())
    assert target.state_dict()[FIRST].dtype == torch.float64
    assert torch.equal(target.state_dict()[FIRST], source.state_dict()[FIRST].bfloat16().double())


def lacking(weights: dict[str, Tensor]) -> None:
    del weights["conv_blocks_context.2.0.norm1.bias"]


def other_shape(weights: dict[str, Tensor]) -> None:
    weights["upsample_layers.1.conv.weight"] = torch.zeros(7, 32, 1, 1, 1)


def unknown(weights: dict[str, Tensor]) -> None:
    weights["decoder.new.weight"] = torch.zeros(3)


def two_channels(weights: dict[str, Tensor]) -> None:
    weights[FIRST] = torch.zeros(2, 2, 3, 3, 3)


def half_prefixed(weights: dict[str, Tensor]) -> None:
    weights[f"module.{FIRST}"] = weights.pop(FIRST)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lacking, r"lack conv_blocks_context\.2\.0\.norm1\.bias \(8,\)"),
        (other_shape, r"other shapes in upsample_layers\.1\.conv\.weight \(7, 32, 1, 1, 1\) for \(16, 32, 1, 1, 1\)"),
        (unknown, r"hold unknown decoder\.new\.weight \(3,\)"),
        (two_channels, r"other shapes in .*conv1\.weight \(2, 2, 3, 3, 3\) for \(2, 1, 3, 3, 3\)"),
        (half_prefixed, r"lack conv_blocks_context.*; hold unknown module\."),
    ],
)
def test_weights_that_do_not_fit_change_nothing(damage, message: str) -> None:
    target = make(1)
    before = copies(target)
    weights = copies(make(0))
    damage(weights)
    with pytest.raises(CheckpointError, match=message) as error:
        transfer(target, weights, fresh=HEADS)
    assert "fresh" in str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in target.state_dict().items())


def test_many_problems_are_counted() -> None:
    # 130 weights with five heads are 120 without any; five of them are named.
    with pytest.raises(CheckpointError, match=r"lack conv_blocks_context\.0\..* and 115 more"):
        transfer(make(1), {}, fresh=HEADS)
    with pytest.raises(CheckpointError, match=r"have other shapes in .* and 115 more"):
        transfer(make(1), make(0, width=3).state_dict(), fresh=HEADS)


def test_model_without_storage_is_refused() -> None:
    with pytest.raises(CheckpointError, match="meta"):
        transfer(STUNet(make(0).config, "meta"), make(0).state_dict(), fresh=())


def test_report_prints_and_serialises() -> None:
    target = make(1, in_channels=2, heads=1)
    report = transfer(target, make(0).state_dict(), fresh=HEADS)
    lines = report.text().splitlines()
    assert lines[0] == "loaded 120 of 122 weights"
    assert lines[1] == "left as initialised 2: seg_outputs.4.weight, seg_outputs.4.bias"
    assert lines[2].startswith("unused 4: seg_outputs.")
    assert lines[3] == f"repeated over input channels 2: {FIRST}, {SHORTCUT}"
    plain = json.loads(json.dumps(report.to_dict()))
    assert set(plain) == {"loaded", "reinitialised", "unused", "repeated"}
    assert plain["loaded"] == list(report.loaded)
