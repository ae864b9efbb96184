"""What a metrics line says, computed by hand with a clock that the test sets."""

import json
import math
from pathlib import Path

import pytest
import torch

from launch.report_run import NOT_LOSSES
from voxscale.engine import meter
from voxscale.engine.meter import Meter, over_ranks, peak_tflops

WORKER = Path(__file__).parent / "worker_meter.py"


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(meter, "time", made)
    return made


def test_a_line_is_what_was_counted_over_the_time_that_passed(clock):
    found = Meter(flops=2e12, peak=50.0)
    found.add({"loss": torch.tensor(1.0)}, samples=4, voxels=1000)
    found.add({"loss": torch.tensor(2.0)}, samples=4, voxels=3000)
    found.waited, found.saved = 0.5, 1.0
    with found.forward(torch.device("cpu")):
        clock.now += 1
    clock.now += 3
    row = found.line(2, 0.1, 3.0)
    assert "probe_wait" not in row
    assert row["loss"] == pytest.approx(1.5)
    assert row["samples_per_s"] == pytest.approx(2.0)
    assert row["voxels_per_s"] == pytest.approx(1000.0)
    assert (row["data_wait"], row["save_wait"], row["compute"]) == pytest.approx((0.125, 0.25, 0.625))
    assert row["forward_share"] == pytest.approx(0.25)
    assert row["tflops"] == pytest.approx(4.0)  # 8 samples of 2 TFLOP in 4 s
    assert row["mfu"] == pytest.approx(0.08)
    assert row["seconds"] == pytest.approx(4.0)
    assert row["rss_gb"] > 0.01
    assert not [name for name in row if name.endswith(("_max", "_rank"))]  # of one rank there is nothing to tell
    assert (row["step"], row["lr"], row["grad_norm"]) == (2, 0.1, 3.0)


def test_the_next_line_begins_anew(clock):
    found = Meter(flops=1e12)
    found.add({"loss": torch.tensor(9.0)}, samples=1, voxels=1)
    found.waited = 1.0
    clock.now += 1
    found.line(1, 0.1, 1.0)
    found.add({"loss": torch.tensor(3.0)}, samples=6, voxels=12)
    clock.now += 2
    row = found.line(2, 0.1, math.nan)
    assert (row["loss"], row["samples_per_s"], row["data_wait"], row["tflops"]) == pytest.approx((3.0, 3.0, 0.0, 3.0))
    assert row["seconds"] == pytest.approx(3.0)
    assert row["grad_norm"] is None
    assert "mfu" not in row


def test_nothing_is_claimed_where_nothing_is_known(clock):
    clock_row = Meter().line(1, 0.1, 1.0)
    assert not {"tflops", "mfu", "loss"} & clock_row.keys()
    assert clock_row["samples_per_s"] == 0


def test_the_rank_that_all_wait_for_stands_in_the_line_and_costs_no_message(ranks, tmp_path):
    outputs = ranks(WORKER, 2, str(tmp_path))
    for output in outputs:  # of two lines; each is one exchange of numbers
        assert json.loads(next(line for line in output.splitlines() if line.startswith("{")))["calls"] == [1, 1]
    for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        seconds = 8 * 2 / row["samples_per_s"]  # of two steps
        assert row["data_wait_rank"] == 1
        assert row["data_wait_max"] * seconds > 0.39
        assert row["data_wait"] < 0.75 * row["data_wait_max"]
        assert row["forward_share_rank"] == 0
        assert row["forward_share_max"] * seconds > 0.99
        # The other waits for it in its loss; that is no work of its own.
        assert row["forward_share"] < 0.7 * row["forward_share_max"]
        assert row["rss_gb_rank"] == 1
        assert row["rss_gb_max"] < row["rss_gb"] < 2 * row["rss_gb_max"] - 0.4
        assert row.keys() - NOT_LOSSES == {"loss", "mse"}  # the report draws what is left


def test_memory_of_gpus_is_that_of_the_fullest():
    row = over_ranks({"gpu_gb": [1.0, 3.0, 2.0], "rss_gb": [5.0, 1.0, 2.0], "data_wait": [0.0, 0.1, 0.5]})
    assert (row["gpu_gb"], row["gpu_gb_rank"]) == (3.0, 1)
    assert (row["rss_gb"], row["rss_gb_max"], row["rss_gb_rank"]) == (8.0, 5.0, 0)
    assert (row["data_wait"], row["data_wait_max"], row["data_wait_rank"]) == (pytest.approx(0.2), 0.5, 2)
    assert "gpu_gb_max" not in row
    assert row.keys() <= NOT_LOSSES
    assert over_ranks({"gpu_gb": [1.5], "data_wait": [0.25]}) == {"gpu_gb": 1.5, "data_wait": 0.25}


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 1979 / 2),
        ("NVIDIA H100 PCIe", "bf16", 1513 / 2),
        ("NVIDIA H100 PCIe", "fp32", 51.0),
        ("NVIDIA H200", "bf16", 1979 / 2),
        ("NVIDIA H200 NVL", "bf16", 0.0),
        ("NVIDIA GH200 480GB", "bf16", 0.0),
        ("Tesla V100-SXM2-32GB", "bf16", 0.0),
        ("Tesla V100-SXM2-32GB", "fp32", 15.7),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4),
        ("NVIDIA A40", "bf16", 0.0),
        ("Some GPU", "bf16", 0.0),
    ],
)
def test_peak_is_that_of_the_longest_name_or_unknown(device, precision, peak):
    assert peak_tflops(device, precision) == pytest.approx(peak)
