"""`python -m pretrain` and `python -m voxscale.engine.export` as a launcher and a user start them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import warm_python
from safetensors import safe_open
from safetensors.torch import load_file
from tests_stores import make_store

from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from voxscale.cli import AGAIN
from voxscale.contract import InputContract
from voxscale.engine import export
from voxscale.engine.checkpoint import latest, load_weights
from voxscale.models.build import build, read_config

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
FLAGS = ["--model.width", "2", "--objective.volume-fusion.block-min", "2", "--objective.volume-fusion.block-max", "6"]
FLAGS += ["--loop.batch", "2", "--loop.steps", "100000", "--loop.log-every", "1", "--loop.checkpoint-every", "100000"]
FLAGS += ["--tracker.no-wandb", "--engine.precision", "bf16", "--loader.workers", "1"]
PATIENCE_S = 150.0
ASKED = Path(__file__).parent / "worker_asked.py"
FIRST_ENGINE = "deepspeed.runtime.zero.muon.muon_optimizer"
"""What DeepSpeed imports while the first engine is made."""


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end_by(number: signal.Signals, shards: Path, run: Path) -> tuple[int, str, float]:
    """Start the command, send it and all that it started a signal two steps on, as schedulers do.

    Returns:
        Exit status, what it said, seconds until its end.
    """
    command = [sys.executable, "-m", "pretrain", "configs/pretrain.py:demo", "--shards", shards, "--run", run, *FLAGS]
    before = lines(run)
    started = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while lines(run) < before + 2 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    own = psutil.Process(started.pid)
    for process in [own, *own.children(recursive=True)]:
        process.send_signal(number)
    sent = time.monotonic()
    said = started.communicate(timeout=PATIENCE_S)[1]
    return started.returncode, said, time.monotonic() - sent


def end_early_by(number: signal.Signals, module: str, *arguments: object) -> None:
    """Start the command, send a signal when it first imports a module, and look at how it ends."""
    command = [sys.executable, ASKED, module, number.name, "configs/pretrain.py:demo", *arguments, *FLAGS]
    env = ENV | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stderr.count("asked\n") == 1, done.stderr
    assert done.returncode == AGAIN, done.stderr
    said = (
        f"ended: pretrain was ended by {number.name} outside of its steps: what it had saved is there; start it again"
    )
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_while_torch_is_imported_end_the_command_to_be_started_again(number):
    end_early_by(number, "torch")


@pytest.mark.slow
def test_signals_have_the_command_save_and_ask_to_be_started_again_and_export_reads_what_is_left(tmp_path):
    make_store(tmp_path / "task", 4, labelled=True)
    plan = plan_task(tmp_path / "task", 16**3, InputContract(spacing=(2.0, 1.5, 1.5)))
    make_store(tmp_path / "data", 5, labelled=False)
    pack(tmp_path / "data", tmp_path / "shards", plan.contract, plan.patch, plan.strides, PackConfig(factor=1.25))
    run, step = tmp_path / "run", 0
    for number in (signal.SIGUSR2, signal.SIGTERM):  # SIGUSR1 is taken by the same handler, see voxscale.signals
        end_early_by(number, FIRST_ENGINE, "--shards", tmp_path / "shards", "--run", run)  # nothing is lost by it
        status, said, seconds = end_by(number, tmp_path / "shards", run)
        assert status == AGAIN == 75, said
        assert f"pretrain: step {step} of 100000" in said  # it went on where the signal before left it
        rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, rows[-1] + 1))
        assert rows[-1] > step
        assert "loading process" not in said, said  # none was lost, which would be told
        step = rows[-1]
        assert f"ended: pretrain was ended by {number.name} after step {step}: step {step} is saved" in said
        assert (run / "checkpoints" / f"step-{step:08d}" / "manifest.json").is_file()
        assert seconds < 30  # a step, a save and the loader's end, on however busy a machine

    out = tmp_path / "backbone.safetensors"
    assert warm_python.run(["-m", "voxscale.engine.export", run, out], ENV).returncode == 0
    with safe_open(out, framework="pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items() if key not in ("format", "kind")}
    assert about["position"]["step"] == step
    assert about["contract"]["spacing"] == [2.0, 1.5, 1.5]
    assert about["config"]["loop"]["batch"] == 2
    model = build(read_config(about["model"]))
    model.load_state_dict(load_file(out), strict=True)
    newest = latest(run)
    assert newest is not None
    weights = load_weights(newest)
    assert all(p.equal(weights[f"backbone.{name}"]) for name, p in model.named_parameters())


def test_exporting_what_is_not_there_is_one_line(tmp_path, capsys):
    assert export.main([str(tmp_path), str(tmp_path / "out.safetensors")]) == 1
    assert "error: export must begin with a run with a checkpoint" in capsys.readouterr().err
    assert export.main([str(tmp_path)]) == 2
    assert not (tmp_path / "out.safetensors").exists()
