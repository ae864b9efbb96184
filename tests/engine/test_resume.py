"""A run cut at a step and started again ends with the same bits, at every ZeRO stage."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "worker_train.py"

CASES = [
    ("0", "fp32", "adamw"),
    ("1", "fp32", "adamw"),
    ("2", "fp32", "sgd"),
    ("3", "fp32", "adamw"),
    ("1", "bf16", "adamw"),
    ("2", "bf16", "adamw"),
    ("3", "bf16", "adamw"),
    ("1", "bf16", "sgd"),
]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision", "kind"), CASES)
def test_cut_run_ends_with_the_same_bits(ranks, tmp_path, stage, precision, kind):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        run.mkdir()
    ranks(WORKER, 2, str(whole), "8", "8", stage, precision, kind, "4")
    ranks(WORKER, 2, str(cut), "5", "8", stage, precision, kind, "4")
    out = ranks(WORKER, 2, str(cut), "8", "8", stage, precision, kind, "4")
    assert json.loads(out[0].splitlines()[-1]) == {"start": 3}
    assert losses(whole) == losses(cut)
    a, b = load_file(whole / "final.safetensors"), load_file(cut / "final.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
