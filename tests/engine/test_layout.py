"""Images of one channel are channels-last by their strides, so the whole network computes in that layout."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from voxscale.engine.layout import channels_last

WORKER = Path(__file__).parent / "worker_layout.py"
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
