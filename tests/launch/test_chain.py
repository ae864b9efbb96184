"""The whole chain on scans with planted identifiers: killed at several places, it ends with the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pyarrow.parquet as pq
import pydicom
import pytest
from planted import WORDS, plant_dicom, plant_nifti
from warm_python import run, start

from data_prep.phantom import PhantomConfig, make_cohort
from voxscale.engine.checkpoint import latest, load_weights, read_about
from voxscale.models.build import build, read_config

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--patch-voxels", "4096", "--pretrain.model.width", "2", "--pretrain.loop.steps", "8"]
SMALL += ["--pretrain.loop.checkpoint-every", "3", "--finetune.folds", "2", "--finetune.loop.steps", "4"]
SMALL += ["--finetune.loop.checkpoint-every", "2", "--pretrain.objective.volume-fusion.block-min", "2"]
SMALL += [
    "--pretrain.objective.volume-fusion.block-max",
    "8",
    "--finetune.inference.overlap",
    "0.0",
    "--finetune.inference.batch",
    "16",
]
MOMENTS = [f"{stage}-*/parts/*/*.jsonl" for stage in ("task", "ingest")]
MOMENTS += ["pack-*", "pretrain-*/checkpoints/step-00000003", "finetune-*/*/seed-0/fold-0/cases.json"]
"""What is there when a stage is at work: of both stores, shards, pretraining, the second training of fine-tuning."""

pytestmark = pytest.mark.slow()


def command(scans: Path, out: Path) -> list[str]:
    words = ["-m", "launch", "demo", "configs/demo.py:reduced", "--out", out]
    words += ["--data", scans / "CANARY^ward", "--task", scans / "CANARY^study", *SMALL]
    return list(map(str, words))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A cohort whose names, headers and folders all hold the word CANARY."""
    made = tmp_path_factory.mktemp("cohort") / "made"
    make_cohort(made, PhantomConfig(unlabelled=8, labelled=4))
    home = tmp_path_factory.mktemp("CANARY-hospital")
    (made / "unlabelled").rename(home / "CANARY^ward")
    (made / "task").rename(home / "CANARY^study")
    for path in sorted(home.rglob("*.nii*")):
        if "scan_007" not in path.name:  # the damaged one cannot be opened
            image = nib.load(path)
            plant_nifti(image)
            nib.save(nib.Nifti1Image(image.dataobj, image.affine, image.header), path)
            assert nib.load(path).header.extensions
        path.rename(path.with_name(f"CANARY_{path.name}"))
    for path in sorted(home.rglob("*")):
        if path.is_file() and "nii" not in path.name and path.suffix != ".json":
            slice_ = pydicom.dcmread(path)
            plant_dicom(slice_)
            slice_.save_as(path)
    return home


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    words = [sys.executable, *command(scans, out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout, done.stderr


def folder(out: Path, stage: str) -> Path:
    (found,) = [p for p in out.glob(f"{stage}-*") if not p.name.endswith(".private")]
    return found


def test_summary_has_what_others_rely_on_and_adds_up(whole):
    out, said, _ = whole
    summary = json.loads((out / "summary.json").read_text())
    volumes = summary["volumes"]
    assert volumes["found"] == volumes["accepted"] + volumes["rejected"] + volumes["quarantined"] == 12
    assert volumes["rejected"] == 1
    for arm in ("scratch", "pretrained", "difference"):
        assert {"dice_mean", "ci95", "per_label"} <= summary[arm].keys()
    assert {"p_value", "n_cases"} <= summary["difference"].keys()
    assert summary["difference"]["n_cases"] == 4
    stages = ["task", "ingest", "plan", "pack", "pretrain", "finetune"]
    assert list(summary["seconds"]) == stages
    assert 0 < summary["peak_rss_gb"] < 6
    assert len(summary["config_hash"]) == 12
    assert "scratch  pretrained  difference" in said
    assert said.rstrip().endswith("report/index.html")


def test_step_report_counts_the_operations_of_the_backbone(whole):
    out, *_ = whole
    run = folder(out, "pretrain")
    about = read_about(latest(run))
    model = build(read_config(about["model"], "model"), device="meta")
    patch = json.loads((folder(out, "pack") / "manifest.json").read_text())["patch"]
    files = [run / "metrics.jsonl", *sorted(run.parent.glob("finetune-*/**/metrics.jsonl"))]
    metrics = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(metrics) == 5  # of pretraining, and of two folds in two arms
    assert all(row["tflops"] > 0 for row in metrics)
    row = metrics[0]
    # Of one device; a step is three forward passes' worth of multiplications and additions.
    whole_job = row["tflops"] * 1e12 * about["world_size"]
    assert whole_job / row["samples_per_s"] == pytest.approx(3 * model.flops(patch), rel=1e-6)


def test_no_identifier_leaves_the_private_folders(whole, scans):
    out, said, complained = whole
    assert "CANARY" not in said + complained
    searched = 0
    for path in out.rglob("*"):
        if any(part.endswith(".private") for part in path.parts):
            continue
        assert "CANARY" not in str(path.relative_to(out))
        if path.is_file():
            searched += 1
            data = path.read_bytes()
            if path.suffix == ".parquet":  # compressed, so what it says is searched too
                data += str(pq.read_table(path).to_pylist()).encode() + str(pq.read_metadata(path).metadata).encode()
            assert not any(word in data for word in WORDS), path
    assert searched > 50
    private = b"".join(p.read_bytes() for p in out.glob("*.private/*"))
    assert b"CANARY" in private  # the search does find it where it may stand


def test_a_second_run_finds_everything_done(whole, scans):
    out, *_ = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    done = run(command(scans, out))
    assert done.returncode == 0
    assert done.stderr.count("done before") == 6
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}


def test_killed_in_any_stage_it_goes_on_to_the_same_result(whole, scans, tmp_path):
    """SIGKILL of the launcher alone or of its whole group, then a run to the end."""
    out = tmp_path / "out"
    for number, began in enumerate(MOMENTS):
        with open(os.devnull, "w") as none:
            victim = start(command(scans, out), os.environ, none, none)
        deadline = time.monotonic() + 200
        while not any(out.glob(began)) and victim.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        assert victim.poll() is None
        if number % 2:
            os.killpg(victim.pid, signal.SIGKILL)
        else:
            os.kill(victim.pid, signal.SIGKILL)  # the next run follows at once and waits for what is ending
        victim.wait()
    done = run(command(scans, out), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = whole[0], out
    first, second = (load_weights(folder(o, "pretrain") / "checkpoints" / "step-00000008") for o in (a, b))
    assert all(first[key].equal(second[key]) for key in first)
    one, two = (json.loads((folder(o, "finetune") / "results.json").read_text()) for o in (a, b))
    for results in (one, two):
        for row in results["cases"]:
            del row["subject"]  # keyed anew in every store
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere", "--task", "nowhere"], "DATA and TASK must be folders that exist, not 'nowhere'"),
        (["--data", "."], "DATA and TASK must be given together"),
        (["--data", "tests", "--task", "configs"], "TASK must be a folder that holds images/ and labels/"),
    ],
)
def test_wrong_folders_are_one_clear_line(tmp_path, arguments, said):
    done = run(["-m", "launch", "demo", "--out", tmp_path / "out", *arguments])
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_out_inside_data_is_refused(tmp_path, scans):
    words = ["-m", "launch", "demo", "--out", tmp_path / "scans" / "out", "--data", tmp_path / "scans"]
    (tmp_path / "scans").mkdir()
    words += ["--task", scans / "CANARY^study"]
    done = run(words)
    assert done.returncode == 1
    assert "OUT must lie outside DATA and TASK" in done.stderr


def test_an_empty_folder_ends_with_one_clear_line(tmp_path, scans):
    (tmp_path / "empty").mkdir()
    words = ["-m", "launch", "demo", "--out", tmp_path / "out", "--data", tmp_path / "empty"]
    words += ["--task", scans / "CANARY^study"]
    done = run(words)
    assert done.returncode == 1
    assert "no scan" in done.stderr.lower()
    assert "Traceback" not in done.stderr
