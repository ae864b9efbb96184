"""What happens to a run when a checkpoint is damaged, the disk is full, a value is not finite."""

import json
import shutil
from pathlib import Path

import pytest

from voxscale.engine import checkpoint
from voxscale.errors import CheckpointError

WORKER = Path(__file__).parent / "worker_train.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ranks):
    """A real run of two ranks with checkpoints at steps 3 and 6."""
    run = tmp_path_factory.mktemp("run")
    ranks(WORKER, 2, str(run), "6", "6", "1", "fp32", "adamw", "4")
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.slow
def test_a_checkpoint_holds_plain_files_and_says_what_it_is(run):
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
    newest = checkpoint.latest(run)
    assert newest is not None
    names = sorted(p.name for p in newest.iterdir())
    assert names == ["manifest.json", "model.safetensors", "optim.safetensors", "rng.safetensors", "state.json"]
    about = checkpoint.read_about(newest)
    assert about["position"] == {"step": 6, "samples": 24}
    assert about["model"] == "test"
    weights = checkpoint.load_weights(newest)
    assert {"0.weight", "1.bias", "5.bias"} < weights.keys()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_loudly_and_kept(run, damage, caplog):
    newest = run / "checkpoints" / "step-00000006"
    target = newest / ("manifest.json" if damage == "manifest" else "model.safetensors")
    data = target.read_bytes()
    if damage == "delete":
        target.unlink()
    else:
        target.write_bytes(data[:-7] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    found = checkpoint.latest(run)
    assert found is not None
    assert found.name == "step-00000003"
    assert "step-00000006" in caplog.text
    assert newest.is_dir()


@pytest.mark.slow
def test_a_half_written_checkpoint_is_never_looked_at(run):
    (run / "checkpoints" / ".step-00000009.tmp").mkdir()
    found = checkpoint.latest(run)
    assert found is not None
    assert found.name == "step-00000006"


@pytest.mark.slow
def test_a_run_with_only_damaged_checkpoints_is_an_error_not_a_fresh_start(run):
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match="all 2 are damaged"):
        checkpoint.latest(run)


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_from_the_same_weights(run, ranks):
    ranks(WORKER, 1, str(run), "9", "9", "2", "fp32", "adamw", "4")  # another ZeRO stage as well
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses] == list(range(1, 10))
    assert losses[6]["loss"] < losses[0]["loss"]


@pytest.mark.slow
def test_resized_run_follows_the_undisturbed_one(run, tmp_path, ranks):
    whole = tmp_path / "whole"
    whole.mkdir()
    ranks(WORKER, 2, str(whole), "9", "9", "1", "fp32", "adamw", "4")
    cut = tmp_path / "cut"
    cut.mkdir()
    ranks(WORKER, 2, str(cut), "6", "9", "1", "fp32", "adamw", "4")
    ranks(WORKER, 1, str(cut), "9", "9", "3", "fp32", "adamw", "4")
    a, b = ([json.loads(x)["loss"] for x in (r / "metrics.jsonl").read_text().splitlines()] for r in (whole, cut))
    assert a[:6] == b[:6]
    assert a == pytest.approx(b, rel=1e-5)  # the sums over a batch are split differently


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_step_on_every_rank(tmp_path, ranks):
    run = tmp_path / "run"
    run.mkdir()
    out = ranks(WORKER, 2, str(run), "6", "6", "1", "fp32", "adamw", "4", "17", expect=1)
    assert all("loss at step 4 must be finite on every rank" in text for text in out)
    assert (run / "checkpoints" / "step-00000003").is_dir()


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path, ranks):
    run = tmp_path / "run"
    run.mkdir()
    out = ranks(WORKER, 2, str(run), "6", "6", "1", "fp32", "adamw", "4", "-1", "6", expect=1)
    assert all("checkpoint at step 6 must be written whole, but:" in text and "File too large" in text for text in out)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000003"]
    found = checkpoint.latest(run)
    assert found is not None
    assert found.name == "step-00000003"


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused(run, ranks, tmp_path):
    import safetensors.torch as st

    folder = run / "checkpoints" / "step-00000006"
    weights = st.load_file(folder / "model.safetensors")
    weights["0.weight"] = weights["0.weight"][:4].clone()
    st.save_file(weights, folder / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / "model.safetensors"
    from voxscale.files import sha256_file

    manifest["files"]["model.safetensors"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = ranks(WORKER, 2, str(run), "9", "9", "1", "fp32", "adamw", "4", expect=1)
    assert all("must be those of this architecture" in text for text in out)
