"""Every family trains in bf16 over the ZeRO stages: weights move, only what should decays, statistics stay fp32."""

import json
import math
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "worker_families.py"
CASES = ["fmunet-1", "convnext_b-3", "vit_b_timm-1", "resenc_l-2", "pctnet-3", "resnet50-1"]
DECAY = 1e-3 * 0.5


@pytest.mark.slow
def test_all_families_take_steps_in_bf16_and_decay_weights_of_layers_only(ranks):
    (output,) = ranks(WORKER, 1, ",".join(CASES))
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [f"{row['name']}-{row['stage']}" for row in rows] == CASES
    for row in rows:
        name = row["name"]
        assert all(math.isfinite(loss) for loss in row["losses"]), name
        assert row["losses"][3] < row["losses"][1], name
        assert row["still"] == [], name
        assert set(row["buffers"]) <= {"torch.float32", "torch.int64"}, name
        assert row["teacher"], name
        for key, share in row["kept"].items():
            if math.isnan(share):  # all zeros, such as a bias
                assert key in row["free"], (name, key)
            elif key in row["free"]:
                assert share == 1.0, (name, key)
            else:
                assert share == pytest.approx(1 - DECAY, abs=1e-7), (name, key)
