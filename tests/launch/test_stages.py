"""Pretraining and fine-tuning as a user starts them: `python -m launch`, real processes, real DeepSpeed.

Those that are killed are started anew; the others are forked, see `warm_python`.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import warm_python
from medim.models.stu_net import STUNet
from tests_stores import make_store

from configs.pretrain import demo as pretrain_preset
from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from finetune.folds import split
from finetune.results import fold_folder
from voxscale.cli import AGAIN
from voxscale.config import save_json
from voxscale.contract import InputContract
from voxscale.engine.checkpoint import load_buffers, load_weights, manifest_text, stored
from voxscale.files import sha256_file
from voxscale.models.released.load import FORMS
from voxscale.shards import index_name, open_manifest, parse_index
from voxscale.shards import manifest_text as shards_text
from voxscale.store import open_store
from voxscale.store_root import stamp_contract

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
TINY = [
    "--model.width",
    "2",
    "--objective.volume-fusion.block-min",
    "2",
    "--objective.volume-fusion.block-max",
    "6",
    "--loop.batch",
    "2",
]
TINY += ["--loop.log-every", "1", "--loop.checkpoint-every", "2", "--tracker.no-wandb", "--engine.precision", "bf16"]
TUNE = ["--folds", "2", "--loop.steps", "3", "--loop.batch", "2", "--tracker.no-wandb", "--loop.checkpoint-every", "2"]
TUNE += ["--loop.log-every", "1"]

pytestmark = pytest.mark.slow()


def launch(*arguments, expect=0):
    done = warm_python.run(["-m", "launch", *arguments], os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shards, a planned task, and a finished pretraining with two ranks."""
    folder = tmp_path_factory.mktemp("world")
    make_store(folder / "task", 4, labelled=True)
    plan = plan_task(folder / "task", 16**3, CONTRACT)
    # The halves of a part-whole patch must be images that the network takes; those of the planned 14 slices are not.
    plan = dataclasses.replace(plan, patch=(16, 16, 16), strides=(*[(2, 2, 2)] * 2, *[(1, 1, 1)] * 3))
    save_json(plan, folder / "plan.json")
    make_store(folder / "data", 5, labelled=False)
    pack(folder / "data", folder / "shards", plan.contract, plan.patch, plan.strides, PackConfig(factor=1.25))
    pretrain(folder, folder / "pre", 6, processes=2)
    return folder


@pytest.fixture(scope="module")
def tuned(world):
    """A finished fine-tuning, and what it said."""
    return world / "tuned", finetune(world, world / "tuned")


def pretrain(world, run, steps, processes, expect=0):
    preset = "configs/pretrain.py:demo"
    where = ["--shards", world / "shards", "--run", run, "--loop.steps", steps]
    return launch("pretrain", preset, "--cluster", "local", "--processes", processes, *where, *TINY, expect=expect)


def finetune(world, run, *more, expect=0, **replaced):
    paths = {"store": world / "task", "plan": world / "plan.json", "checkpoint": world / "pre", "run": run} | replaced
    flags = [part for name, path in paths.items() for part in (f"--{name}", path)]
    return launch("finetune", "configs/finetune.py:demo", "--processes", "2", *flags, *TUNE, *more, expect=expect)


def asked(world, run, number, there, rank):
    """Pretrain with two ranks and send one of them a signal, or the launcher for None, twice, when a file is there."""
    arguments = ["-m", "launch", "pretrain", "configs/pretrain.py:demo", "--processes", "2"]
    arguments += ["--shards", world / "shards", "--run", run, "--loop.steps", "60", *TINY]
    arguments += ["--loop.checkpoint-every", "1000"]
    with run.with_name("said").open("w") as out:
        started = warm_python.start(arguments, os.environ | {"OMP_NUM_THREADS": "1"}, out, out)
    deadline = time.monotonic() + 200
    while not there.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    every = [p for p in psutil.Process(started.pid).children(recursive=True) if "submitit.core._submit" in p.cmdline()]
    assert len(every) == 2
    victim = started.pid if rank is None else every[rank].pid
    os.kill(victim, number)  # one rank is enough, and a second signal changes nothing
    os.kill(victim, number)
    started.wait(timeout=250)
    return run.with_name("said").read_text(), started


def weights(run, step):
    return dict(load_weights(run / "checkpoints" / f"step-{step:08d}"))


def test_pretraining_leaves_metrics_checkpoints_and_a_preview(world):
    rows = [json.loads(line) for line in (world / "pre" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "dice", "ce", "lr", "grad_norm", "samples_per_s", "voxels_per_s", "data_wait"} <= rows[0].keys()
    state = json.loads((world / "pre" / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert state["contract"]["spacing"] == [2.0, 1.5, 1.5]
    assert state["model"]["width"] == 2
    assert state["model"]["heads"] == 0  # the objective has its own
    assert (state["position"]["step"], state["position"]["samples"]) == (6, 12)
    assert len(state["position"]["extra"]["guard"]["losses"]) == 6  # all steps were good
    assert state["config"]["optim"]["lr"] == pretrain_preset().optim.lr
    assert (world / "pre" / "preview.npz").is_file()
    assert not [p for p in (world / "pre").rglob("*") if p.suffix in (".pt", ".pth", ".bin")]


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(world, tmp_path):
    run = tmp_path / "run"
    arguments = [sys.executable, "-m", "launch", "pretrain", "configs/pretrain.py:demo", "--processes", "2"]
    arguments += ["--shards", world / "shards", "--run", run, "--loop.steps", "6", *TINY]
    victim = subprocess.Popen(
        list(map(str, arguments)), cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-00000002").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)  # the launcher alone: its ranks must notice and end by themselves
    victim.wait()
    assert not (run / "checkpoints" / "step-00000006").exists()
    began = time.monotonic()
    while subprocess.run(["pgrep", "-f", str(run)], capture_output=True, check=False).stdout:
        assert time.monotonic() - began < 15, "ranks outlive their launcher"
        time.sleep(0.2)
    pretrain(world, run, 6, processes=2)
    a, b = weights(world / "pre", 6), weights(run, 6)
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("number", "back"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_before_the_first_step_has_a_run_queued_again(world, tmp_path, number, back, rank):
    run = tmp_path / "run"
    said, started = asked(world, run, number, run / "config.json", rank)
    if back:
        assert started.returncode == 0, said
        rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, 61))
    else:
        assert started.returncode == 1
        assert "pretrain was ended by SIGTERM" in said
        assert "start it again to go on" in said


@pytest.mark.parametrize(("number", "back"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_has_a_run_saved_and_queued_again(world, tmp_path, number, back):
    run = tmp_path / "run"
    said, started = asked(world, run, number, run / "metrics.jsonl", 1)
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if back:
        assert started.returncode == 0, said
        steps = re.findall(r"pretrain: step (\d+) of 60", said)
        assert len(steps) == 2, said
        assert int(steps[1]) > 0
        assert rows == list(range(1, 61))
    else:
        assert started.returncode == 1
        assert f"pretrain was ended by SIGTERM after step {rows[-1]}: step {rows[-1]} is saved" in said
        assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{rows[-1]:08d}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_has_its_ranks_save_and_is_waited_for(world, tmp_path, number):
    run = tmp_path / "run"
    said, started = asked(world, run, number, run / "metrics.jsonl", None)
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert started.returncode == AGAIN, said
    assert f"ended: pretrain was ended by SIGTERM after step {rows[-1]}: step {rows[-1]} is saved" in said
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{rows[-1]:08d}"]


def test_a_signal_to_the_launcher_while_ranks_start_ends_them(world, tmp_path):
    run = tmp_path / "run"
    said, started = asked(world, run, signal.SIGTERM, run / ".lock", None)
    assert started.returncode == AGAIN, said
    assert said.count("ended:") == 1


def test_another_number_of_processes_reads_the_same_samples(world, tmp_path):
    run = tmp_path / "run"
    pretrain(world, run, 6, processes=1)
    one, two = (
        [json.loads(x)["loss"] for x in (r / "metrics.jsonl").read_text().splitlines()] for r in (run, world / "pre")
    )
    assert one == pytest.approx(two, rel=0.03)  # bf16: sums over the batch are split differently


def mix(world, run, *more, expect=0):
    flags = ["--objective.weights.graph-matching", "1", "--objective.measure-every", "2"]
    flags += ["--objective.graph-matching.group", "4", "--objective.graph-matching.k", "2", "--loop.steps", "4", *more]
    where = ["--shards", world / "shards", "--run", run]
    preset = "configs/pretrain.py:demo"
    tiny = [*TINY, "--loop.batch", "8"]
    return launch("pretrain", preset, "--cluster", "local", "--processes", 2, *where, *tiny, *flags, expect=expect)


def test_two_objectives_are_trained_at_once_and_finetuning_takes_the_backbone(world, tmp_path):
    """Gradients that are measured in the middle of a step do not disturb it."""
    mix(world, tmp_path / "both", "--objective.balance", "gradients", "--engine.zero-stage", "2")
    rows = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    names = {f"graph_matching/{name}" for name in ("matching", "variance", "map_accuracy", "gradient", "balance")}
    assert names | {"volume_fusion/dice", "volume_fusion/gradient"} <= rows[0].keys()
    assert all(row["volume_fusion/gradient"] > 0 and row["graph_matching/gradient"] > 0 for row in rows)
    assert rows[1]["volume_fusion/balance"] == rows[0]["volume_fusion/balance"] != rows[2]["volume_fusion/balance"]
    finetune(world, tmp_path / "tuned", checkpoint=tmp_path / "both")
    report = json.loads((tmp_path / "tuned" / "transfer.json").read_text())
    assert len(report["loaded"]) > 50
    assert not [name for name in report["loaded"] + report["unused"] if "branches." in name]


def test_two_objectives_in_slices_give_the_same_losses_and_balance(world, tmp_path):
    found = []
    for stage in ("1", "3"):
        more = ["--engine.zero-stage", stage, "--engine.precision", "fp32", "--loop.steps", "3"]
        mix(world, tmp_path / stage, *more, "--objective.balance", "gradients")
        rows = [json.loads(row) for row in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        found.append([[row[name] for row in rows] for name in ("loss", "volume_fusion/balance")])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    assert found[0][1][-1] != found[0][1][0]


def part_whole(world, run, processes):
    flags = ["--objective.weights.volume-fusion", "0", "--objective.weights.part-whole", "1", "--loop.steps", "4"]
    for name, value in {"hidden": 16, "bottleneck": 8, "prototypes": 32, "least-voxels": 0, "local-views": 1}.items():
        flags += [f"--objective.part-whole.{name}", value]
    flags += ["--objective.part-whole.frozen", "0", "--engine.zero-stage", "2", "--engine.precision", "fp32"]
    where = ["--cluster", "local", "--processes", processes, "--shards", world / "shards", "--run", run]
    return launch("pretrain", "configs/pretrain.py:demo", *where, *TINY, "--loop.batch", "4", *flags)


def test_part_whole_goes_on_with_centre_and_teacher_to_the_same_bits_and_with_one_process_to_the_same_numbers(
    world, tmp_path
):
    part_whole(world, tmp_path / "whole", 2)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["compose_gradient"] > 0
    for name in ("resumed", "one"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000004")
    ends = {}
    for name, processes in (("resumed", 2), ("one", 1)):
        assert "step 2 of 4" in part_whole(world, tmp_path / name, processes)
    for name in ("whole", "resumed", "one"):
        folder = tmp_path / name / "checkpoints" / "step-00000004"
        ends[name] = {"weights": load_weights(folder), "ema": stored(folder, "ema"), "buffers": load_buffers(folder)}
    centre = "branches.part_whole.centre.value"
    early = load_buffers(tmp_path / "whole" / "checkpoints" / "step-00000002")[centre]
    assert not torch.equal(early, ends["whole"]["buffers"][centre])
    assert early.any()
    for kind, values in ends["whole"].items():
        assert len(values) > 0
        for key in values:
            assert torch.equal(ends["resumed"][kind][key], values[key]), (kind, key)
            # A norm takes these biases out: gradients are rounding noise, and Adam steps by the rate whatever they are.
            off = 1e-2 if key.endswith(("conv1.bias", "conv2.bias")) else 5e-4
            torch.testing.assert_close(ends["one"][kind][key], values[key], rtol=1e-3, atol=off, msg=f"{kind} {key}")
    one = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    for term in ("localise", "compose", "decompose"):
        assert [row[term] for row in one] == pytest.approx([row[term] for row in rows], rel=1e-3)


def test_finetuning_starts_from_a_released_file(world, tmp_path):
    net = STUNet(
        num_classes=5,
        depth=[1] * 6,
        dims=[2 * n for n in (1, 2, 4, 8, 16, 16)],
        pool_op_kernel_sizes=[[2, 2, 2]] * 5,
        conv_kernel_sizes=[[3, 3, 3]] * 6,
    )
    torch.save({"epoch": np.float64(4), "state_dict": net.state_dict()}, tmp_path / "small.model")
    init = ["--init.weights", tmp_path / "small.model", "--init.format", "stunet"]
    said = finetune(world, tmp_path / "run", *init, checkpoint=tmp_path / "none")
    assert "transfer: stunet: loaded 120 of 124 weights from 130 in the file" in said
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["transfer"]["counts"] == {
        "file": 130, "network": 124, "loaded": 120, "reinitialised": 4, "unused": 10,
    }  # fmt: skip
    moved = (tmp_path / "small.model").rename(tmp_path / "moved.model")
    init[1] = moved
    finetune(world, tmp_path / "run", *init, checkpoint=tmp_path / "none")  # the same file elsewhere: goes on
    torch.save({"state_dict": Call()}, moved)
    said = finetune(world, tmp_path / "other", *init, checkpoint=tmp_path / "none", expect=1)
    assert said.count("error:") == 1
    assert "must be a file of tensors and plain values, not one that asks for" in said
    said = finetune(world, tmp_path / "other", *init[:2], checkpoint=tmp_path / "none", expect=2)
    assert "init.format must be given if init.weights is" in said
    said = finetune(world, tmp_path / "other", *init[:3], "nnunet", checkpoint=tmp_path / "none", expect=2)
    assert all(form in said for form in FORMS)


class Call:
    def __reduce__(self):
        return print, ("it ran",)


def test_a_run_folder_belongs_to_one_config(world):
    said = pretrain(world, world / "pre", 7, processes=1, expect=1)
    assert "this one differs in loop.steps" in said
    assert said.count("error:") == 1


def test_shards_that_are_not_there_are_one_clear_line(world, tmp_path):
    said = launch("pretrain", "configs/pretrain.py:demo", "--shards", tmp_path, "--run", tmp_path / "r", expect=1)
    assert "must hold a manifest.json; run data_prep pack" in said


def test_a_run_whose_shards_are_mostly_damaged_ends_and_says_so(world, tmp_path):
    """Three of five bricks have a flipped bit; ten samples may be replaced, the eleventh is too many."""
    shards, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(world / "shards", shards)
    bricks = [
        (line.name, sample.voxels[0])
        for line in open_manifest(shards).shards
        for sample in parse_index((shards / index_name(line.name)).read_bytes(), line.name)[0].samples
    ]
    assert len(bricks) == 5
    for name, start in bricks[:3]:
        data = bytearray((shards / name).read_bytes())
        data[start + 30] ^= 1
        (shards / name).write_bytes(data)
    more = ["--loop.steps", 60, *TINY, "--loader.workers", 1, "--stream.spatial.zoom", 1, 1]
    said = launch("pretrain", "configs/pretrain.py:demo", "--shards", shards, "--run", run, *more, expect=1)
    assert said.count("error:") == 1
    assert re.search(r"error: data must be readable; 11 samples had to be replaced while \d+ were delivered", said)
    assert "more than loader.replaced=0.01 allows; see incidents-rank0.jsonl, mend the data or raise it" in said
    rows = [json.loads(line) for line in (run / "incidents-rank0.jsonl").read_text().splitlines()]
    replaced = [row for row in rows if row["kind"] == "replaced"]
    assert len(replaced) == 11
    assert {row["reason"] for row in replaced} == {"corrupt"}
    assert len({row["volume"] for row in replaced}) <= 3
    assert (run / "metrics.jsonl").read_text().splitlines()  # it trained on the good ones until then


def test_blocks_larger_than_the_patch_are_refused(world, tmp_path):
    tiny = [*TINY, "--objective.volume-fusion.block-max", "40", "--shards", world / "shards", "--run", tmp_path / "r"]
    said = launch("pretrain", "configs/pretrain.py:demo", *tiny, expect=1)
    assert "objective.block_max must be at most the patch" in said


def test_finetuning_tests_every_case_once_in_both_arms_and_goes_on(world, tuned):
    run, said = tuned
    assert "transfer: loaded 120 of" in said
    found = json.loads((run / "results.json").read_text())
    for arm in ("scratch", "pretrained"):
        assert sorted(row["case"] for row in found["cases"] if row["arm"] == arm) == [f"{n:016x}" for n in range(4)]
    assert found["classes"] == {"1": "ball", "2": "box"}
    assert found["summary"]["difference"]["n_cases"] == 4
    assert found["summary"]["difference"]["least_p"] == pytest.approx(2 / 2**4)
    assert {p["label"] for p in found["previews"]} == {"best", "median", "worst"}
    done = run / "scratch" / "seed-0" / "fold-0" / "cases.json"
    stamp = done.stat().st_mtime_ns
    (run / "results.json").unlink()
    (run / "pretrained" / "seed-0" / "fold-1" / "cases.json").unlink()  # as if killed in the last training
    finetune(world, run)
    assert json.loads((run / "results.json").read_text()) == found
    assert done.stat().st_mtime_ns == stamp
    # Dice is that of a micro-batch: trainings of which some had another would not be comparable.
    assert "this one differs in engine.accumulate;" in finetune(world, run, "--engine.accumulate", "2", expect=1)


def test_a_damaged_case_is_replaced_where_it_is_learnt_from_and_refused_where_it_is_tested(world, tmp_path):
    task, run = shutil.copytree(world / "task", tmp_path / "task"), tmp_path / "run"
    subjects = {key: entry.subject for key, entry in open_store(task).entries.items()}
    case = split(subjects, 2)[1][0]
    chunk = task / case / "0" / "c" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    said = finetune(world, run, "--arms", "scratch", store=task, expect=1)
    wanted = f"error: scan {case} must have intact chunks; remove its folder from the store and ingest again"
    assert said.count("error:") == said.count(wanted) == 1
    assert (fold_folder(run, "scratch", 0, 0) / "cases.json").exists()
    assert not (run / "results.json").exists()
    told = [path.read_text().splitlines() for path in fold_folder(run, "scratch", 0, 0).glob("incidents-rank*.jsonl")]
    rows = [json.loads(line) for lines in told for line in lines]
    assert {(row["kind"], row["reason"], row["volume"]) for row in rows} == {("replaced", "corrupt", case)}
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)  # as ingest does
    finetune(world, run, "--arms", "scratch", store=task)
    assert len(json.loads((run / "results.json").read_text())["cases"]) == 4


def test_finished_trainings_keep_their_weights_only(tuned):
    run, _ = tuned
    for arm in ("scratch", "pretrained"):
        fold = run / arm / "seed-0" / "fold-0"
        assert sorted(p.name for p in (fold / "weights").iterdir()) == ["model.safetensors", "state.json"]
        assert not (fold / "checkpoints").exists()
    a, b = (
        json.loads((run / arm / "seed-0" / "fold-0" / "weights" / "state.json").read_text())
        for arm in ("scratch", "pretrained")
    )
    for what in ("step", "samples"):  # twins: same steps, same samples, same config
        assert a["position"][what] == b["position"][what]
    assert a["config"] == b["config"]


def test_a_finished_run_may_be_moved(world, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(world, moved)
    said = pretrain(moved, moved / "pre", 6, processes=2)
    assert "step 6 of 6" in said
    assert said.count("pretrain: shuffle: a batch of 2 mixes") == 1  # one of two ranks says so


def test_other_shards_are_refused_in_an_old_run(world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world / "pre", run)
    shards = tmp_path / "shards"
    shutil.copytree(world / "shards", shards)
    manifest = open_manifest(shards)
    other = dataclasses.replace(manifest, skipped_air=manifest.skipped_air + 1)
    (shards / "manifest.json").write_bytes(shards_text(other))
    arguments = ["--shards", shards, "--run", run, "--loop.steps", 6, *TINY]
    said = launch("pretrain", "configs/pretrain.py:demo", *arguments, expect=1)
    assert "this one differs in inputs.shards" in said


def test_data_prepared_under_another_contract_are_refused(world, tmp_path):
    store = tmp_path / "task"
    shutil.copytree(world / "task", store)
    stamp_contract(store, InputContract(spacing=(3.0, 1.5, 1.5)))
    said = finetune(world, tmp_path / "r", store=store, expect=1)
    assert "task store was prepared under another contract: contract.spacing must be [2.0, 1.5, 1.5], not [3.0" in said


def test_a_checkpoint_of_another_architecture_is_refused(world, tmp_path):
    run = tmp_path / "pre"
    shutil.copytree(world / "pre", run)
    folder = run / "checkpoints" / "step-00000006"
    path = folder / "state.json"
    state = json.loads(path.read_text())
    state["model"]["width"] = 4
    path.write_text(json.dumps(state))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["state.json"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / "manifest.json").write_text(manifest_text(files))
    said = finetune(world, tmp_path / "r", checkpoint=run, expect=1)
    assert "weights must fit the model" in said


def test_a_run_without_a_checkpoint_is_refused(world, tmp_path):
    (tmp_path / "empty").mkdir()
    said = finetune(world, tmp_path / "r", checkpoint=tmp_path / "empty", expect=1)
    assert "finetune.checkpoint must be a run with a checkpoint, not empty" in said


def test_more_folds_than_subjects_are_refused(world, tmp_path):
    said = finetune(world, tmp_path / "r", "--folds", "9", expect=1)
    assert "finetune.folds must be at most the number of labelled subjects, 4, not 9" in said
