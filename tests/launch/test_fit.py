import pytest
from tests_stores import make_store

from configs import finetune, pretrain
from launch.fit import fit_blocks, fit_folds
from pretrain.objectives.fusion_config import VolumeFusionConfig, check
from voxscale.contract import InputContract
from voxscale.errors import DataError
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
