"""A whole study on phantoms, cut off and gone on with."""

import dataclasses
import json
import os

import pytest
from warm_python import run

from configs.study import hippocampus, small, vertebrae
from data_prep.phantom import PhantomConfig, make_cohort
from launch.study import Pretext
from voxscale.errors import ConfigError

TINY = ["--patch-voxels", "4096", "--subjects", "1", "9", "--seeds", "0", "--cluster.cpus", "1"]
TINY += ["--finetune.folds", "2", "--finetune.loop.steps", "2", "--finetune.inference.overlap", "0"]
TINY += ["--finetune.inference.batch", "16"]
PRETEXT = ["model.width", "2", "loop.steps", "1", "loop.batch", "2", "objective.volume-fusion.block-min", "2"]


def test_what_cannot_be_compared_is_refused():
    one = small().pretexts[0]
    with pytest.raises(ConfigError, match=r"study.pretexts must be one or more of different names"):
        dataclasses.replace(small(), pretexts=(one, one))
    other = dataclasses.replace(one.pretrain, model=dataclasses.replace(one.pretrain.model, width=4))
    with pytest.raises(ConfigError, match=r"study.pretexts must be of one backbone, not '2 different ones'"):
        dataclasses.replace(small(), pretexts=(one, Pretext(name="other", pretrain=other)))
    with pytest.raises(ConfigError, match=r"study.subjects must be one or more different numbers above 0"):
        dataclasses.replace(small(), subjects=(4, 4))
    with pytest.raises(ConfigError, match=r"pretext.name must be of small letters"):
        Pretext(name="scratch", pretrain=one.pretrain)


@pytest.mark.parametrize("preset", [small, hippocampus, vertebrae])
def test_presets_compare_equal_budgets(preset):
    loops = {(one.pretrain.loop.steps, one.pretrain.loop.batch, one.pretrain.optim.lr) for one in preset().pretexts}
    assert len(loops) == 1


@pytest.mark.slow
def test_cells_are_done_once_and_the_table_rests_on_them(tmp_path):
    make_cohort(tmp_path / "made", PhantomConfig(unlabelled=4, labelled=4))
    out = tmp_path / "out"
    flags = [
        part
        for key, value in zip(PRETEXT[::2], PRETEXT[1::2], strict=True)
        for part in (f"--pretexts.0.pretrain.{key}", value)
    ]
    words = ["-m", "launch", "study", "tests/launch/study_preset.py:one", "--out", out]
    words += ["--data", tmp_path / "made" / "unlabelled", "--task", tmp_path / "made" / "task", *TINY, *flags]

    def study(*more):
        """Run the command to its end: forked, with trainings in processes that it starts anew."""
        return run([*words, *more], os.environ | {"OMP_NUM_THREADS": "1"})

    late = study("--jobs", "2", "--minutes", "0.001")
    assert late.returncode == 0, late.stderr[-3000:]
    missing = json.loads((out / "study.json").read_text())["missing"]
    assert set(missing) == {"pretrain-volume_fusion-0", "tune-scratch-1-0", "tune-volume_fusion-1-0"}
    done = study("--jobs", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no cells of 9 subjects, as a fold leaves 2" in done.stderr
    found = json.loads((out / "study.json").read_text())
    assert [(cell["subjects"], cell["start"]) for cell in found["cells"]] == [(1, "scratch"), (1, "volume_fusion")]
    assert found["cells"][1]["difference"]["n_cases"] == 4
    (tuned,) = out.glob("tune-volume_fusion-1-0-*")
    results = json.loads((tuned / "results.json").read_text())
    assert results["arms"] == ["pretrained"]
    assert results["subjects"] == 1
    assert found["cells"][1]["dice_mean"] == results["summary"]["pretrained"]["dice_mean"]
    (scratch,) = out.glob("tune-scratch-1-0-*")
    assert json.loads((scratch / "results.json").read_text())["transfer"] is None
    again = study()
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("done before") == 7  # two stores, plan, shards, pretraining, two cells
    assert json.loads((out / "study.json").read_text()) == found | {"jobs": 1}
