"""A run cut at a step and started again ends with the same bits, at every ZeRO stage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from voxscale.engine import checkpoint, export

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "worker_train.py"
TEACHER = Path(__file__).parent / "worker_ema.py"
FOLLOWED = [
    "1-fp32-none-4",
    "2-bf16-none-2",
    "2-fp32-optimizer-1",
    "1-bf16-optimizer-2",
    "3-fp32-all-1",
    "3-bf16-all-2",
]

CASES = [
    ("0", "fp32", "adamw"),
    ("2", "fp32", "sgd"),
    ("3", "fp32", "adamw"),
    ("1", "bf16", "adamw"),
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


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [("2", "fp32"), ("3", "fp32")])
def test_running_statistics_go_on_with_the_same_bits_on_every_rank(ranks, tmp_path, stage, precision):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ("-1", "-1", "0", "6", "batch")
    for run, steps in ((whole, "8"), (cut, "5"), (cut, "8")):
        run.mkdir(exist_ok=True)
        ranks(WORKER, 2, str(run), steps, "8", stage, precision, "adamw", "4", *more)
    a, b = ([load_file(run / f"buffers-{rank}.safetensors") for rank in range(2)] for run in (whole, cut))
    assert a[0].keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not torch.equal(a[0]["1.running_mean"], a[1]["1.running_mean"])  # each rank sees other samples
    assert int(a[0]["1.num_batches_tracked"]) == 8
    assert all(torch.equal(a[rank][name], b[rank][name]) for rank in range(2) for name in a[rank])
    assert losses(whole) == losses(cut)

    found = checkpoint.latest(cut)
    assert found is not None
    out = tmp_path / "out.safetensors"
    if stage == "1":  # in a process for which DeepSpeed is not installed
        code = "import sys; sys.modules['deepspeed'] = None; from voxscale.engine import export; "
        command = [sys.executable, "-c", f"{code}sys.exit(export.main(sys.argv[1:]))", str(cut), str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert export.main([str(cut), str(out)]) == 0
    written = load_file(out)
    assert all(torch.equal(written[name], value) for name, value in a[0].items())
    assert written.keys() == checkpoint.load_model(found).keys()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_offloaded_and_accumulated_runs_with_a_teacher_go_on_with_the_same_bits(ranks, tmp_path, world):
    whole, cut, cases = tmp_path / "whole", tmp_path / "cut", ",".join(FOLLOWED)
    ranks(TEACHER, world, str(whole), cases)
    ranks(TEACHER, world, str(cut), cases, str(whole / "CASE" / "checkpoints" / "step-00000003"))
    for case in FOLLOWED:
        ends = [run / case / "checkpoints" / "step-00000008" for run in (whole, cut)]
        assert sorted(p.name for p in (cut / case / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
        for kind in ("weights", "exp_avg", "exp_avg_sq", "ema"):
            theirs, ours = (checkpoint.stored(end, kind) for end in ends)
            early = checkpoint.stored(whole / case / "checkpoints" / "step-00000003", kind)
            assert theirs.keys() == ours.keys() == early.keys() != set(), (case, kind)
            assert all(torch.equal(theirs[name], ours[name]) for name in theirs), (case, kind)
            assert not any(torch.equal(theirs[name], early[name]) for name in ("0.weight", "3.weight")), (case, kind)
        counts = [checkpoint.read_about(end)["updates"] for end in ends]
        assert counts == [7, 7], case  # of 8 steps one is bad
