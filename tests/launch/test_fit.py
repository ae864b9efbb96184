import dataclasses

import pytest
from tests_stores import make_store

from configs import finetune, pretrain, study
from launch.fit import fit_blocks, fit_folds, fit_pretraining
from pretrain.objectives.fusion_config import VolumeFusionConfig, check
from pretrain.objectives.part_whole import PartWhole
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.models.build import adapt, build
from voxscale.patches import Plan, plan_patch


def test_folds_are_at_most_the_labelled_subjects(tmp_path):
    make_store(tmp_path / "two", 2, labelled=True)
    make_store(tmp_path / "five", 5, labelled=True)
    assert fit_folds(finetune.demo(), tmp_path / "two").folds == 2
    assert fit_folds(finetune.demo(), tmp_path / "five") == finetune.demo()


def test_one_labelled_subject_is_refused_before_hours_of_training(tmp_path):
    make_store(tmp_path / "one", 1, labelled=True)
    with pytest.raises(DataError, match="labelled scans of at least 2 subjects, not 1"):
        fit_folds(finetune.demo(), tmp_path / "one")
    make_store(tmp_path / "none", 3, labelled=False)
    with pytest.raises(DataError, match="not 0"):
        fit_folds(finetune.demo(), tmp_path / "none")


@pytest.mark.parametrize("shape", [(8, 200, 200), (12, 64, 64), (35, 50, 35), (300, 300, 300)])
def test_blocks_fit_any_planned_patch(shape):
    patch, strides = plan_patch(shape, 48**3)
    fitted = fit_blocks(pretrain.demo(), Plan(contract=InputContract(), patch=patch, strides=strides))
    check(fitted.objective.volume_fusion, patch)
    if min(patch) >= 32:
        assert fitted == pretrain.demo()
    else:
        assert fitted.objective.volume_fusion != VolumeFusionConfig()


@pytest.mark.parametrize(
    ("shape", "parts"), [((64, 64, 64), 8), ((40, 50, 30), 4), ((33, 41, 25), 4), ((16, 60, 60), 4)]
)
def test_parts_are_as_many_as_the_network_takes_of_the_planned_patch(shape, parts):
    preset = study.small().pretexts[2].pretrain
    assert preset.objective.active == ("part_whole",)
    patch, strides = plan_patch(shape, 32**3)
    plan = Plan(contract=InputContract(), patch=patch, strides=strides)
    fitted = fit_pretraining(preset, plan).objective.part_whole
    assert (patch, fitted.parts) == (patch, parts)
    backbone = build(adapt(preset.model, in_channels=1, classes=0, heads=0, strides=strides), "meta")
    PartWhole(fitted, backbone).check(backbone, patch)
    chosen = dataclasses.replace(preset.objective, part_whole=dataclasses.replace(fitted, splits=(2, 2, 2), parts=8))
    explicit = dataclasses.replace(preset, objective=chosen)
    assert fit_pretraining(explicit, plan).objective.part_whole == chosen.part_whole
