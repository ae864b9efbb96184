"""What happens to a run when a checkpoint is damaged, the disk is full, a value is not finite."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from voxscale.engine import checkpoint
from voxscale.errors import CheckpointError

WORKER = Path(__file__).parent / "worker_train.py"
PARTS = ["state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"]


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
    assert names == ["manifest.json", *PARTS, "state.json"]
    about = checkpoint.read_about(newest)
    assert {key: about["position"][key] for key in ("step", "samples")} == {"step": 6, "samples": 24}
    assert about["updates"] == 6
    assert about["model"] == "test"
    weights = checkpoint.load_weights(newest)
    assert {"0.weight", "1.bias", "5.bias"} < weights.keys()
    final = load_file(run / "final.safetensors")
    assert all(torch.equal(weights[name], final[name]) for name in final)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_loudly_and_kept(run, caplog):
    newest = run / "checkpoints" / "step-00000006"
    rng = np.random.default_rng(0)
    for path in sorted(newest.iterdir()):
        data = path.read_bytes()
        places = [0, len(data) - 1, *rng.integers(len(data), size=20)]
        flips = [data[:i] + bytes([data[i] ^ (1 << int(rng.integers(8)))]) + data[i + 1 :] for i in places]
        for bad in [None, b"", data[:-1], data + b" ", *flips]:
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            caplog.clear()
            found = checkpoint.latest(run)
            assert found is not None
            assert found.name == "step-00000003"
            assert "step-00000006" in caplog.text
            path.write_bytes(data)
        assert checkpoint.latest(run) == newest


@pytest.mark.slow
def test_a_run_goes_on_before_a_damaged_checkpoint_and_keeps_it(run, ranks):
    folder = run / "checkpoints"
    broken = folder / "step-00000006" / PARTS[1]
    broken.write_bytes(broken.read_bytes()[:-1])
    out = ranks(WORKER, 2, str(run), "9", "9", "1", "fp32", "adamw", "4")
    assert json.loads(out[0].splitlines()[-1]) == {"start": 3}
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["damaged-step-00000006-1", "step-00000006", "step-00000009"]
    assert (folder / names[0] / PARTS[1]).stat().st_size == (folder / names[1] / PARTS[1]).stat().st_size - 1


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
def test_a_loss_that_is_not_finite_costs_its_step_and_is_remembered(tmp_path, ranks):
    run = tmp_path / "run"
    run.mkdir()
    ranks(WORKER, 2, str(run), "6", "6", "1", "fp32", "adamw", "4", "17")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"], "loss" in row) for row in rows[3:]] == [
        (4, 0, True),
        (5, 1, False),
        (6, 1, True),
    ]
    (bad,) = [json.loads(line) for line in (run / "incidents-rank0.jsonl").read_text().splitlines()]
    assert (bad["kind"], bad["step"], bad["what"], bad["value"]) == ("bad_step", 4, "loss", "nan")
    assert [part["samples"] for rank in bad["ranks"] for part in rank if part["loss"] == "nan"] == [[16, 17]]
    newest = checkpoint.latest(run)
    assert newest is not None
    guard = checkpoint.read_about(newest)["position"]["extra"]["guard"]
    assert (guard["skipped"], len(guard["losses"]), guard["in_a_row"]) == (1, 5, 0)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path, ranks):
    run = tmp_path / "run"
    run.mkdir()
    out = ranks(WORKER, 2, str(run), "6", "6", "1", "fp32", "adamw", "4", "-1", "6", expect=1)
    assert all("checkpoint at step 6 must be written whole, but: File too large" in text for text in out)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000003"]
    found = checkpoint.latest(run)
    assert found is not None
    assert found.name == "step-00000003"


@pytest.mark.slow
@pytest.mark.parametrize("who", ["0", "1"])
def test_a_run_goes_on_while_the_disk_is_full(tmp_path, ranks, who):
    run = tmp_path / "run"
    run.mkdir()
    out = ranks(WORKER, 2, str(run), "12", "12", "1", "fp32", "adamw", "4", "-1", "6", who, expect=None)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]
    assert sum(text.count("checkpoint at step 6 could not be written: File too large") for text in out) == 1
    # Lines of rank 0 between the two saves had no room either, and were written once there was some.
    assert out[0].count("metrics could not be written: File too large") == (who == "0")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused(run, ranks):
    out = ranks(WORKER, 2, str(run), "9", "9", "1", "fp32", "adamw", "4", "-1", "-1", "0", "7", expect=1)
    assert all("must be those of this architecture" in text for text in out)
