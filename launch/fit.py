"""Make presets fit a task: few labelled subjects, thin scans."""

import dataclasses
import logging
from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.objectives.fusion_config import sides
from voxscale.errors import DataError
from voxscale.patches import Plan
from voxscale.store import open_store

log = logging.getLogger("voxscale")


def fit_folds(config: FinetuneConfig, task_store: Path) -> FinetuneConfig:
    """At most as many folds as there are labelled subjects.

    Raises:
        DataError: If there are fewer than two, so that nothing could be tested on a case not trained on.
    """
    entries = open_store(task_store).entries.values()
    subjects = {entry.subject for entry in entries if entry.label and not entry.planar}
    if len(subjects) < 2:
        raise DataError(
            f"TASK must hold labelled scans of at least 2 subjects, not {len(subjects)}; see the ledger of its store",
            "few_subjects",
        )
    folds = min(config.folds, len(subjects))
    if folds < config.folds:
        log.info("finetune: %d folds instead of %d, as there are %d subjects", folds, config.folds, len(subjects))
    return dataclasses.replace(config, folds=folds)


def fit_blocks(config: PretrainConfig, plan: Plan) -> PretrainConfig:
    """Blocks of at most half the patch along each axis, so that there are several."""
    half = [max(1, n // 2) for n in plan.patch]
    least, greatest = (
        tuple(min(side, limit) for side, limit in zip(sides(block), half, strict=True))
        for block in (config.objective.volume_fusion.block_min, config.objective.volume_fusion.block_max)
    )
    if (least, greatest) == (
        sides(config.objective.volume_fusion.block_min),
        sides(config.objective.volume_fusion.block_max),
    ):
        return config
    log.info("pretrain: blocks of %s to %s voxels, to fit the patch %s", least, greatest, plan.patch)
    fusion = dataclasses.replace(
        config.objective.volume_fusion,
        block_min=(least[0], least[1], least[2]),
        block_max=(greatest[0], greatest[1], greatest[2]),
    )
    objective = dataclasses.replace(config.objective, volume_fusion=fusion)
    return dataclasses.replace(config, objective=objective)
