"""Images of one channel are channels-last by their strides, so the whole network computes in that layout."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import configs.models
from configs import finetune, pretrain
from voxscale.engine.config import EngineConfig
from voxscale.engine.layout import CHANNELS_LAST, WEIGHTS_LAST, channels_last, family, settle
from voxscale.models.stunet import STUNetConfig

WORKER = Path(__file__).parent / "worker_layout.py"
RESULT = Path(__file__).parents[2] / "docs" / "results" / "bench" / "layouts.json"
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("shape", [(2, 1, 6, 5, 4), (1, 3, 6, 5, 4), (1, 1, 1, 1, 1), (2, 1, 6, 5), (2, 3, 6, 5)])
@pytest.mark.parametrize("turned", [False, True])
def test_strides_are_those_that_torch_gives_a_tensor_of_that_layout(shape, turned):
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    x = x.transpose(-1, -2).contiguous().transpose(-1, -2) if turned else x
    got = channels_last(x)
    assert torch.equal(got, x)
    assert got.stride() == torch.empty(shape, memory_format=LAYOUTS[len(shape)]).stride()
    if shape[1] == 1 and not turned:
        assert got.data_ptr() == x.data_ptr()


def test_a_convolution_of_one_channel_answers_in_the_layout():
    for dims, conv in ((3, nn.Conv3d(1, 4, 3)), (2, nn.Conv2d(1, 4, 3))):
        conv, x = conv.bfloat16(), torch.ones(1, 1, *[16] * dims, dtype=torch.bfloat16)
        layout = LAYOUTS[x.ndim]
        assert conv(channels_last(x)).is_contiguous(memory_format=layout)
        # The reason for the function: torch's own call changes nothing here. If it does one day, drop the function.
        assert not conv(x.contiguous(memory_format=layout)).is_contiguous(memory_format=layout)


def test_every_bf16_convolution_is_channels_last_through_the_engine_at_every_stage(ranks):
    (output,) = ranks(WORKER, 1)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [(row["stage"], row["precision"]) for row in rows] == [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
    for row in rows:
        assert row["stem"] == 1, row  # the image, by its strides
        assert row["convolutions"] >= 20, row
        if row["precision"] == "bf16":  # torch's own kernels for small fp32 images on one thread know one layout only
            assert row["others"] == [], row


def test_auto_is_what_the_committed_measurement_says():
    rows = json.loads(RESULT.read_text())["families"]
    assert {name: row["on"]["channels_last"] for name, row in rows.items()} == CHANNELS_LAST
    for row in rows.values():  # the rule itself, from the figures
        found = row["channels_last"]
        assert row["on"]["channels_last"] == (found["ratio"] >= 1.03 and found["difference"] <= 1e-4)
    turned = {name: row["weights_last"] for name, row in rows.items() if row["on"]["channels_last"]}
    assert {
        name: found["ratio"] >= 1.03 and found["difference"] <= 1e-4 for name, found in turned.items()
    } == WEIGHTS_LAST


def test_presets_leave_the_choice_to_their_family():
    presets = [value for name, value in inspect.getmembers(configs.models, inspect.isfunction) if name[0] != "_"]
    own = [preset() for preset in presets if preset.__module__ == configs.models.__name__]
    assert {family(model) for model in own} >= set(CHANNELS_LAST)
    for config in (pretrain.demo(), pretrain.stunet_b(), finetune.demo()):
        assert config.engine.channels_last == "auto"
    assert settle(EngineConfig(), STUNetConfig(width=4, depth=1)).channels_last == "on"
    for model in own:
        on = CHANNELS_LAST.get(family(model), False)
        assert settle(EngineConfig(), model).channels_last == ("on" if on else "off")
    wish = EngineConfig(channels_last="off", weights_last="off")
    assert settle(wish, STUNetConfig(width=4, depth=1)) == wish
